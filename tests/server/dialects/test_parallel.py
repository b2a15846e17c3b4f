"""How ranks may draw a picture, said at every door."""

from dataclasses import replace

import pytest

from fluxline.approximation import Approximation
from tests.server.dialects.test_edits import SQUARE
from tests.server.dialects.test_loras import drawn_with as loras_of
from tests.worker.fake_engine import INFO

DOORS = (
    "/v1/images/generations",
    "/v1/jobs",
    "/v1/flux-dev",
    "/generate",
    "/submit-request",
    "/v1/batches/generate",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
    "/v1/images/edits",
)
FOX = {"prompt": "a fox"}
PICTURES = {"/sdapi/v1/img2img": {"init_images": [SQUARE]}, "/v1/images/edits": {"image": SQUARE}}
"""For doors that want one."""


def asking(door, parallel):
    """A body that asks so of a door."""
    return {**FOX, **PICTURES.get(door, {}), "parallel": parallel}


@pytest.fixture
def ranks(engine):
    """Four that draw together."""
    engine.models = (replace(INFO, ranks=4, approximations=("piflux", "pipefusion")),)
    return engine


@pytest.mark.parametrize("door", DOORS)
async def test_what_a_request_says_of_it_reaches_its_pictures(http, ranks, door):
    await loras_of(http, ranks, door, **asking(door, "piflux,sync=2,every=8"))

    said = {picture.params.parallel for picture in ranks.started[-1].pictures()}
    assert said == {Approximation(mode="piflux", sync=2, every=8)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ("ulysses=2", "one of piflux"),
        ("piflux,sync=0", "from 1 to 9999"),
        ("distrifusion", "cannot be drawn by distrifusion here; there is piflux, pipefusion"),
        (3, "parallel"),
    ],
)
async def test_what_makes_no_sense_or_is_not_there_is_refused(http, ranks, door, parallel, words):
    answer = await http.post(door, json=asking(door, parallel))

    assert answer.status_code in (400, 422)
    assert words in answer.text


@pytest.mark.parametrize("door", DOORS)
async def test_one_rank_alone_refuses_it_and_says_what_would_help(http, door):
    answer = await http.post(door, json=asking(door, "piflux"))

    assert answer.status_code in (400, 422)
    assert "takes several ranks; fake is drawn by one" in answer.text


async def test_models_say_what_their_ranks_may_be_asked_for(http, ranks):
    [model] = (await http.get("/v1/models")).json()["data"]
    assert (model["ranks"], model["parallel"]) == (4, ["piflux", "pipefusion"])


async def test_a_job_tells_what_it_was_asked(http, ranks):
    made = await http.post("/v1/jobs", json={**FOX, "parallel": "piflux,sync=2"})
    told = (await http.get(f"/v1/jobs/{made.json()['id']}")).json()
    assert told["request"]["parallel"] == "piflux,sync=2"
