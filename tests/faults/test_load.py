"""More asked than can be drawn, for long, by many: what is accepted is drawn, the rest is told."""

import asyncio
import statistics

import pytest

from tests.faults.conftest import CANARY, Footprint, scaled
from tests.faults.paced_engine import EVALUATIONS

pytestmark = pytest.mark.slow
EVALUATION_S = 0.02
PICTURE_S = EVALUATIONS * EVALUATION_S


async def arrive(rate, count, ask):
    """Ask so many times at a steady rate, whether answers come or not; return the answers."""
    loop = asyncio.get_running_loop()
    began, asking = loop.time(), []
    for k in range(count):
        await asyncio.sleep(max(0.0, began + k / rate - loop.time()))
        asking.append(asyncio.create_task(ask(f"{CANARY} {k}")))
    return await asyncio.gather(*asking)


async def alone(ledger, http):
    """What a request takes on this machine, now, when nobody else asks."""
    entries = [await ledger.draw(http, CANARY) for _ in range(7)]
    return statistics.median(entry.took_s for entry in entries)


async def test_a_steady_load_is_answered_and_hardly_waits(start, client, ledger, data):
    server = start(EVALUATION_S)
    async with client(server) as http:
        alone_s = await alone(ledger, http)
        rate, count = 0.5 / alone_s, scaled(50)
        entries = await arrive(rate, count, lambda prompt: ledger.draw(http, prompt))
    server.end()

    assert {entry.status for entry in entries} == {200}
    assert statistics.median(entry.took_s for entry in entries) < 5 * alone_s
    ledger.check(data)


async def test_beyond_the_queue_the_rest_is_told_at_once_when_to_come_again(
    start, client, ledger, data
):
    server = start(EVALUATION_S, queue_limit=8, in_flight=2)
    health = []
    async with client(server) as http:

        async def watch():
            while True:
                health.append((await http.get("/health/live")).status_code)
                await asyncio.sleep(0.1)

        alone_s = await alone(ledger, http)
        watching = asyncio.create_task(watch())
        rate, count = 5 / alone_s, scaled(200)
        entries = await arrive(rate, count, lambda prompt: ledger.draw(http, prompt))
        recovered = await ledger.draw(http, CANARY)
        watching.cancel()
        said = (await http.get("/health")).json()
    server.end()

    assert {entry.status for entry in entries} == {200, 429}
    # At most ten stand before anybody; who is refused waits for none of them.
    assert max(entry.took_s for entry in ledger.accepted) < 15 * alone_s + 20
    assert statistics.median(entry.took_s for entry in ledger.refused) < 2 * alone_s + 1
    assert len(health) > 5
    assert set(health) == {200}
    assert (recovered.status, said["waiting"], said["running"]) == (200, 0, 0)
    assert recovered.took_s < alone_s + 5
    ledger.check(data)


@pytest.mark.soak
async def test_who_asks_little_does_not_wait_for_who_floods(start, client, ledger, monkeypatch):
    monkeypatch.setenv("API_KEYS", "loud,quiet")
    server = start(EVALUATION_S, queue_limit=500, in_flight=2)
    async with (
        client(server, headers={"api-key": "loud"}) as loud,
        client(server, headers={"api-key": "quiet"}) as quiet,
    ):
        alone = [(await ledger.draw(quiet, CANARY)).took_s for _ in range(10)]
        flood = [asyncio.create_task(ledger.draw(loud, CANARY)) for _ in range(200)]
        while (await quiet.get("/queue-stats")).json()["pending"] < 150:
            await asyncio.sleep(0.1)  # each is written down before the next, whosever it is
        beside = [(await ledger.draw(quiet, CANARY)).took_s for _ in range(10)]
        await asyncio.gather(*flood)

    assert max(beside) < max(alone) + 4 * PICTURE_S + 0.5


@pytest.mark.soak
async def test_nothing_grows_with_the_number_of_requests(start, client, ledger, data):
    server = start(0.0)
    prints = []
    async with client(server) as http:
        for _ in range(4):
            for k in range(500):
                ask = ledger.draw if k % 2 else ledger.insist
                await ask(http, f"{CANARY} {k}", width=64 + k % 100)
            await ledger.settle(http)
            await asyncio.sleep(20)  # so that what is kept at hand for latecomers is let go
            prints.append(Footprint.of(server))

    first, last = prints[1], prints[-1]
    assert last.files <= first.files + 4
    assert last.threads <= first.threads + 4
    assert last.children == first.children
    assert last.rss_mib - first.rss_mib < 1000 / 1024 * 2  # 2 KiB a request
    ledger.check(data)
