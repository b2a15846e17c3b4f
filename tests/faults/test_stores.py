"""A database that is locked or full, a store that refuses, rows of another version: nothing is
accepted falsely, what was accepted is finished when the store is back."""

import asyncio
import resource
import sqlite3

import pytest

from tests.faults.conftest import CANARY

pytestmark = pytest.mark.slow


async def test_a_locked_database_is_told_soon_and_nothing_is_accepted_falsely(
    start, client, ledger, data
):
    server = start(0.1)
    async with client(server) as http:
        for k in range(4):
            await ledger.submit(http, f"{CANARY} {k}")
        with sqlite3.connect(data / "jobs.sqlite3") as other:
            other.execute("BEGIN IMMEDIATE")
            asked = [
                asyncio.create_task(ledger.submit(http, f"{CANARY} late {k}")) for k in range(6)
            ]
            late = await asyncio.gather(*asked)
            assert (await http.get("/health/live")).status_code == 200
            other.rollback()
        other.close()
        await ledger.settle(http)
        after = await ledger.submit(http, CANARY)
        await ledger.settle(http)
        await ledger.check_links(http)
    server.end()

    assert {entry.status for entry in late} == {503}
    assert max(entry.took_s for entry in late) < 20  # one waits 5 s for its turn, and none again
    assert after.status == 202
    ledger.check(data)


async def test_a_full_disk_refuses_clearly_and_all_goes_on_when_there_is_room(
    start, client, ledger, data
):
    server = start(0.05)
    async with client(server) as http:
        for k in range(10):
            await ledger.submit(http, f"{CANARY} {k}")
        fill(server, 4096)
        for k in range(6):
            await ledger.submit(http, f"{CANARY} {'long ' * 200} {k}")
        await asyncio.sleep(1)
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/v1/jobs")).status_code == 200
        refused = len(ledger.refused)
        fill(server, resource.RLIM_INFINITY)
        await ledger.settle(http)
        await ledger.submit(http, CANARY)
        await ledger.settle(http)
        await ledger.check_links(http)
    server.end()

    assert refused == 6
    assert ledger.entries[-1].status == 202
    ledger.check(data)


def fill(server, left_bytes):
    """Let no file of a server grow beyond so many bytes."""
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (left_bytes, hard))


async def test_a_store_that_refuses_keeps_its_jobs_until_it_is_back(start, client, ledger, data):
    server = start(0.0)
    pictures = data / "pictures"
    async with client(server) as http:
        pictures.rename(data / "away")
        pictures.write_text("no folder")
        for k in range(5):
            await ledger.submit(http, f"{CANARY} {k}")
        attended = await http.post("/generate", json={"prompt": CANARY})
        await asyncio.sleep(1)
        [listed] = [(await http.get("/v1/jobs?limit=5&status=running")).json()["data"]]
        pictures.unlink()
        (data / "away").rename(pictures)
        await ledger.settle(http)
        await ledger.check_links(http)
    server.end()

    assert (attended.status_code, len(listed)) == (500, 5)
    ledger.check(data, strangers=1)


async def test_a_job_that_another_version_wrote_harms_no_other(start, client, ledger, data):
    server = start(0.0)
    async with client(server) as http:
        old = (await http.post("/v1/jobs", json={"prompt": CANARY})).json()["id"]
    server.end()
    with sqlite3.connect(data / "jobs.sqlite3") as db:
        db.execute("UPDATE jobs SET state = 'queued', result = NULL, request = '{\"id\": 7}'")
    db.close()
    server = start(0.0)
    async with client(server) as http:
        await ledger.submit(http, CANARY)
        await ledger.settle(http)
        found = await http.get(f"/v1/jobs/{old}")
        listed = (await http.get("/v1/jobs")).json()["data"]
    server.end()

    assert found.status_code == 200
    assert (found.json()["status"], len(listed)) == ("failed", 2)
    ledger.check(data, strangers=1)
