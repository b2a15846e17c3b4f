"""The embedded model under the same deaths: the picture of a job that was killed is the picture of
one that was not."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from fluxline.fleet.process import ENGINE
from fluxline.images import encode, encode_mask
from tests.faults.conftest import CANARY
from tests.images.pictures import photo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
BODY = {"prompt": f"a red fox {CANARY}", "seed": 7, "steps": 50}


async def begun(http, job_id, *, restarts):
    """Wait until a picture is being drawn, by a worker that was started again so many times."""
    while True:
        said = (await http.get("/health")).json()
        if (said["status"], said["restarts"], said["running"]) == ("healthy", restarts, 1):
            break
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    told = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert told["status"] == "running", "it ended before anybody could be killed"


async def finished(http, job_id):
    """The pixels of a job's picture. Its file also says with how many threads it was drawn, which
    every worker measures for itself."""
    async with asyncio.timeout(200):
        while True:
            told = (await http.get(f"/v1/jobs/{job_id}")).json()
            if told["status"] not in ("queued", "running"):
                file = (await http.get(told["images"][0]["url"])).content
                return np.asarray(Image.open(io.BytesIO(file)))
            await asyncio.sleep(0.1)


def file(pixels, write=encode, **how):
    return base64.b64encode(write(pixels, **how)).decode()


HALF = np.zeros((128, 128), np.uint8)
HALF[:, :64] = 255
PART = {"image": file(photo(128), format="png"), "mask": file(HALF, encode_mask)}


@pytest.mark.parametrize("more", [{}, PART], ids=["a prompt", "a part of a picture"])
async def test_a_killed_job_draws_the_picture_of_one_that_was_not(more, start, client):
    server = start(engine=ENGINE, model="mini")
    async with client(server) as http:
        undisturbed = (await http.post("/v1/jobs", json=BODY | more)).json()["id"]
        wanted = await finished(http, undisturbed)
        disturbed = (await http.post("/v1/jobs", json=BODY | more)).json()["id"]
        await begun(http, disturbed, restarts=0)
        [worker] = server.workers
        worker.kill()
        await begun(http, disturbed, restarts=1)
        [worker] = server.workers
        server.kill()
        worker.kill()
        await asyncio.to_thread(start, engine=ENGINE, model="mini", port=server.port)
        drawn = await finished(http, disturbed)

    assert drawn.shape == wanted.shape
    np.testing.assert_allclose(drawn.astype(int), wanted, atol=1)  # what another thread may round
    if more:
        assert np.array_equal(drawn[:, 64:], photo(128)[:, 64:])
