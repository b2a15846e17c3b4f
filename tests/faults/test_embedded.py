"""The embedded model under the same deaths: the picture of a job that was killed is the picture of
one that was not, byte for byte."""

import asyncio

import pytest

from fluxline.fleet.process import ENGINE
from tests.faults.conftest import CANARY
from tests.faults.test_deaths import until_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
BODY = {"prompt": f"a red fox {CANARY}", "seed": 7, "steps": 40}


async def begun(http, job_id):
    """Follow a job until its picture has been evaluated a few times."""
    async with http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        async for line in stream.aiter_lines():
            assert not line.startswith("event: done"), "it ended before it could be killed"
            if line.startswith("event: progress"):
                return


async def finished(http, job_id):
    """The hash of a job's picture."""
    async with asyncio.timeout(200):
        while True:
            told = (await http.get(f"/v1/jobs/{job_id}")).json()
            if told["status"] not in ("queued", "running"):
                return told["images"][0]["sha256"]
            await asyncio.sleep(0.1)


async def test_a_killed_job_draws_the_picture_of_one_that_was_not(start, client):
    server = start(engine=ENGINE, model="mini")
    async with client(server) as http:
        undisturbed = (await http.post("/v1/jobs", json=BODY)).json()["id"]
        wanted = await finished(http, undisturbed)
        disturbed = (await http.post("/v1/jobs", json=BODY)).json()["id"]
        await begun(http, disturbed)
        [worker] = server.workers
        worker.kill()
        await asyncio.sleep(0.2)
        await until_ready(http)
        await begun(http, disturbed)
        [worker] = server.workers
        server.kill()
        worker.kill()
        await asyncio.to_thread(start, engine=ENGINE, model="mini", port=server.port)
        drawn = await finished(http, disturbed)

    assert drawn == wanted
