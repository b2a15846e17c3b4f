"""Workers and servers that are killed at any moment: what was accepted ends, and ends once."""

import asyncio
import random
import signal

import psutil
import pytest

from tests.faults.conftest import CANARY, scaled
from tests.running import Running

pytestmark = pytest.mark.slow
JOBS = 20
GOES_ON = ("queued", "running")


async def until_ready(http):
    async with asyncio.timeout(60):
        while (await http.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.05)


async def over(http, job_id):
    """A job, once nothing more comes of it."""
    async with asyncio.timeout(60):
        while (job := (await http.get(f"/v1/jobs/{job_id}")).json())["status"] in GOES_ON:
            await asyncio.sleep(0.05)
    return job


async def test_workers_killed_while_they_draw_lose_no_job(start, client, ledger, data):
    server, chance, kills = start(0.03), random.Random(5), min(scaled(3), 8)
    async with client(server) as http:
        for k in range(JOBS + 10 * kills):
            await ledger.submit(http, f"{CANARY} {k}")
        for _ in range(kills):
            await until_ready(http)
            await asyncio.sleep(chance.uniform(0.1, 0.5))
            [worker] = server.workers
            worker.kill()
            await asyncio.sleep(0.1)
        await ledger.settle(http)
        await ledger.check_links(http)
        said = (await http.get("/health")).json()
    server.end()

    assert said["restarts"] == kills
    assert len(ledger.accepted) == len(ledger.entries)
    ledger.check(data)


async def test_a_poisonous_job_fails_by_name_and_no_other(start, client, ledger, data):
    server = start()
    async with client(server) as http:
        for k in range(JOBS // 2):
            await ledger.submit(http, f"{CANARY} {k}")
        poison = (await http.post("/v1/jobs", json={"prompt": "poison"})).json()["id"]
        for k in range(JOBS // 2):
            await ledger.submit(http, f"{CANARY} late {k}")
        await ledger.settle(http)
        told = await over(http, poison)  # which others do not wait for
        said = (await http.get("/health")).json()
    server.end()

    assert (told["status"], told["error"]["code"]) == ("failed", "worker_died")
    assert said["restarts"] == 3
    assert len(ledger.accepted) == JOBS
    ledger.check(data, strangers=1)


async def test_a_server_killed_at_any_moment_has_every_job_it_accepted(start, client, ledger, data):
    chance, kills = random.Random(9), scaled(2)
    server = start(0.02)
    async with client(server) as http:
        asking = asyncio.create_task(insist(ledger, http, JOBS + 10 * kills))
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.3, 1.5))
            workers = server.workers
            server.kill()
            server = await asyncio.to_thread(start, 0.02, port=server.port)
            _, alive = await asyncio.to_thread(psutil.wait_procs, workers, 20)
            assert not alive
        await asking
        await ledger.settle(http)
        await ledger.check_links(http)
    server.end()

    ledger.check(data)


async def insist(ledger, http, count):
    for k in range(count):
        await ledger.insist(http, f"{CANARY} {k}")
        await asyncio.sleep(0.02)


async def test_who_waited_on_a_line_that_broke_is_not_drawn_for(start, client, ledger, data):
    server = start(2.0)
    async with client(server) as http:
        waiting = [asyncio.create_task(ledger.draw(http, f"{CANARY} {k}")) for k in range(3)]
        kept = await ledger.submit(http, CANARY)
        await asyncio.sleep(0.5)
        server.kill()
        broken = await asyncio.gather(*waiting)
        server = await asyncio.to_thread(start, 0.01, port=server.port)
        await ledger.settle(http)
        again = await http.post(
            "/v1/jobs",
            json={"prompt": CANARY, "seed": kept.seed},
            headers={"idempotency-key": kept.key},
        )
    server.end()

    assert [entry.status for entry in broken] == [0, 0, 0]
    assert again.json()["id"] == kept.job_id
    ledger.check(data)


async def test_a_server_told_to_stop_ends_what_it_began_and_keeps_the_rest(
    start, client, ledger, data
):
    server = start(0.5, in_flight=2)  # time to ask it while it stops
    async with client(server) as http:
        waiting = [asyncio.create_task(ledger.draw(http, f"{CANARY} {k}")) for k in range(4)]
        while (await http.get("/health")).json()["running"] == 0:
            await asyncio.sleep(0.02)
        for k in range(8):
            await ledger.submit(http, f"{CANARY} {k}")
        server.process.send_signal(signal.SIGTERM)
        while (await http.get("/health/ready")).status_code != 503:
            await asyncio.sleep(0.01)
        late = await ledger.submit(http, f"{CANARY} late")
        answers = await asyncio.gather(*waiting)
        code = (await asyncio.to_thread(server.end))[0]
    again = start(0.0)
    async with client(again) as http:
        await ledger.settle(http)
        await ledger.check_links(http)
    again.end()

    assert (code, late.status) == (0, 503)
    assert 200 in {entry.status for entry in answers}
    ledger.check(data)


async def test_a_second_server_on_the_same_folder_is_refused_and_the_first_goes_on(
    start, client, ledger, data
):
    server = start()
    second = Running(data=str(data))
    second.process.wait(30)
    code, _, log = second.end()
    async with client(server) as http:
        entry = await ledger.draw(http, CANARY)
    server.end()

    assert (code, entry.status) == (2, 200)
    assert "another server uses this data folder" in log
    ledger.check(data)
