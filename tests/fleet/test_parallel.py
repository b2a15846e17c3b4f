"""A replica of several ranks, in processes of its own, as a fleet holds it."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from fluxline.approximation import approximation_of
from fluxline.fleet.local import BackOff, LocalReplica
from fluxline.fleet.process import WorkerCommand
from fluxline.images import decode, read_recipe
from fluxline.request import Done, Failed, GenerationRequest, ImageReady, SamplingParams

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def make(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    made = []

    async def start(parallel):
        command = WorkerCommand(model="mini", device="cpu", precision="fp32", parallel=parallel)
        made.append(LocalReplica(command, back_off=BackOff(first_s=0.1)))
        made[-1].start()
        assert await asyncio.wait_for(made[-1].settled(), 120) == "ready"
        return made[-1]

    yield start
    for replica in made:
        await replica.stop()


async def draw(replica, prompt="a red fox", **fields):
    """The files of a request's pictures, in order."""
    request = GenerationRequest(id=f"{prompt} {id(fields)}", prompt=prompt, seed=7, **fields)
    ended, files = asyncio.Event(), {}

    def take(event):
        if isinstance(event, ImageReady):
            files[event.image.index] = event.image.data
        elif isinstance(event, Done | Failed):
            files["end"] = event
            ended.set()

    replica.submit(request, take)
    await asyncio.wait_for(ended.wait(), 120)
    assert isinstance(files.pop("end"), Done)
    return [files[index] for index in sorted(files)]


@pytest.mark.parametrize("parallel", ["ulysses=2", "ring=2", "cfg=2", "ulysses=3"])
async def test_ranks_draw_what_one_draws(parallel, make):
    wishes = {"n": 3, "params": SamplingParams(cfg_scale=2.0, negative_prompt="grey")}
    alone, together = await make(""), await make(parallel)

    for one, other in zip(await draw(alone, **wishes), await draw(together, **wishes), strict=True):
        assert abs(decode(one).astype(int) - decode(other)).max() <= 1


@pytest.mark.parametrize("mode", ["piflux", "distrifusion", "pipefusion"])
async def test_ranks_approximate_one_picture_and_draw_the_next_exactly(mode, make):
    replica = await make("ulysses=2")
    exact = await draw(replica)
    near = await draw(replica, params=SamplingParams(steps=28, parallel=approximation_of(mode)))
    again = await draw(replica)

    recipe = read_recipe(near[0])
    assert recipe.params.parallel.sync == (1 if mode == "pipefusion" else 3)
    assert recipe.receipt.parallel == "ulysses=2"
    assert decode(exact[0]).tolist() == decode(again[0]).tolist()


async def test_a_rank_that_is_killed_costs_no_picture(make):
    replica = await make("ulysses=2")
    (rank,) = psutil.Process(replica.pid).children()
    drawing = asyncio.create_task(draw(replica, n=4, params=SamplingParams(steps=40)))
    await asyncio.sleep(1.0)
    os.kill(rank.pid, signal.SIGKILL)

    assert len(await drawing) == 4
    assert replica.restarts == 1
