"""Ranks that die, raise, stop and stall, in processes of their own: the others are freed within a
stated time, what was open is drawn again, and the group is back.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from fluxline.approximation import approximation_of
from fluxline.fleet.local import BackOff, LocalReplica
from fluxline.fleet.process import WorkerCommand
from fluxline.fleet.watch import Patience
from fluxline.images import decode
from fluxline.parallel.line import SILENT_S
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    Progress,
    SamplingParams,
    Terminal,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
FREED_S = 3.0  # after a rank has died or raised, until no process of its group is left
STOPPED_S = SILENT_S + FREED_S  # after one has stopped
BACK_S = 120.0  # until what was open is drawn: loading, even where others use the cores
SHORT = Patience(look_s=0.5, silent_s=12.0)


@pytest.fixture
async def make(monkeypatch, tmp_path):
    paths = (ROOT / "src", ROOT, ROOT / "tests" / "fleet" / "at_start")
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, paths)))
    monkeypatch.setenv("FAULT_FILE", str(tmp_path / "fault"))
    made = []

    async def start(fault="1 nowhere raise", *, parallel="ulysses=2", patience=None, model="mini"):
        monkeypatch.setenv("FAULT", fault)
        command = WorkerCommand(model=model, device="cpu", precision="fp32", parallel=parallel)
        made.append(LocalReplica(command, back_off=BackOff(first_s=0.1), patience=patience))
        made[-1].start()
        await asyncio.wait_for(made[-1].settled(), 2 * BACK_S)
        return made[-1]

    yield start
    for replica in made:
        await replica.stop()


@pytest.fixture
def fault(tmp_path):
    """Lies there: the fault happens. With a word in it: to prompts with that word, every time."""
    return tmp_path / "fault"


class Drawing:
    """A request, and what is heard of it."""

    def __init__(self, replica, prompt="a red fox", *, name="", **fields):
        fields = {"n": 2, "params": SamplingParams(steps=16), "seed": 7, **fields}
        request = GenerationRequest(id=name or f"{prompt} {id(self)}", prompt=prompt, **fields)
        self.count, self.events, self._news = request.count, [], asyncio.Event()
        replica.submit(request, self._take)

    def _take(self, event):
        self.events.append(event)
        self._news.set()

    async def until(self, kind, within_s=BACK_S):
        """The first event of a kind."""
        async with asyncio.timeout(within_s):
            while not any(isinstance(event, kind) for event in self.events):
                self._news.clear()
                await self._news.wait()
        return next(event for event in self.events if isinstance(event, kind))

    async def files(self):
        """Its pictures in order, once it is done."""
        assert isinstance(await self.until(Terminal), Done)
        images = [event.image for event in self.events if isinstance(event, ImageReady)]
        return [image.data for image in sorted(images, key=lambda image: image.index)]


def processes_of(replica):
    """The first rank, then the others."""
    first = psutil.Process(replica.pid)
    return [first, *first.children()]


async def gone(processes, within_s):
    """Wait until none is left; say how many seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while any(is_left(process) for process in processes):
            await asyncio.sleep(0.02)
    return time.monotonic() - began


def is_left(process):
    """Whether it is there. One that is dead and awaits whoever adopts orphans holds nothing."""
    try:
        return not (process.status() == psutil.STATUS_ZOMBIE and process.ppid() == 1)
    except psutil.NoSuchProcess:
        return False


async def drawn_again(replica, drawing, capfd, *reasons):
    """What was open has been drawn by a group that was started once more, and the log says why."""
    assert len(await drawing.files()) == drawing.count
    assert replica.restarts == 1
    log = capfd.readouterr().err
    for reason in reasons:
        assert reason in log


async def test_a_rank_that_is_killed_amid_an_evaluation_costs_no_picture(make, capfd):
    replica = await make(parallel="ulysses=3")
    group = processes_of(replica)
    drawing = Drawing(replica)
    await drawing.until(Progress)
    os.kill(group[-1].pid, signal.SIGKILL)

    await gone(group, FREED_S)
    await drawn_again(replica, drawing, capfd, "rank 2 was killed by signal 9")


async def test_the_log_begins_with_the_rank_that_was_killed(make, capfd):
    """And not with how the others' exchanges failed for it."""
    replica = await make(parallel="ulysses=3")
    group = processes_of(replica)
    drawing = Drawing(replica)
    await drawing.until(Progress)
    capfd.readouterr()
    os.kill(group[-1].pid, signal.SIGKILL)

    await gone(group, FREED_S)
    first, *_ = capfd.readouterr().err.splitlines()
    assert "rank 2 was killed by signal 9" in first or "rank 2 is gone" in first


@pytest.mark.parametrize("where", ["forward", "decode", "encode"])
@pytest.mark.parametrize("rank", [0, 1])
async def test_a_rank_that_raises_ends_the_group_by_name(make, fault, capfd, rank, where):
    replica = await make(f"{rank} {where} raise")
    group = processes_of(replica)
    before = Drawing(replica, "another prompt", params=SamplingParams(steps=8))
    await before.until(Progress)
    fault.touch()
    drawing = Drawing(replica)

    async with asyncio.timeout(BACK_S):
        while fault.exists():
            await asyncio.sleep(0.02)
    await gone(group, FREED_S)
    reasons = f"rank {rank} cannot go on", "RuntimeError: a fault of the test"
    await drawn_again(replica, drawing, capfd, *reasons)
    assert len(await before.files()) == 2


async def test_ranks_that_disagree_about_a_request_end_instead_of_waiting(make, fault, capfd):
    """One refuses it, as bad requests are refused on all: the others would draw it without him."""
    replica = await make("1 encode refuse")
    group = processes_of(replica)
    fault.touch()
    drawing = Drawing(replica, n=1)  # of several each would be tried again alone

    await gone(group, FREED_S)
    await drawn_again(
        replica, drawing, capfd, "rank 1 cannot go on: DeviceLost: the first rank had"
    )


async def test_a_rank_that_is_stopped_is_found_out_and_killed(make, capfd):
    replica = await make()
    group = processes_of(replica)
    drawing = Drawing(replica)
    await drawing.until(Progress)
    os.kill(group[1].pid, signal.SIGSTOP)

    await gone(group, STOPPED_S)
    await drawn_again(replica, drawing, capfd, "rank 1 has said nothing for 10 s")


async def test_a_rank_that_is_stuck_keeps_nobody_waiting_for_ever(make, fault, capfd, monkeypatch):
    """It beats, but gets nowhere. Others wait for it for five minutes; here for five seconds."""
    monkeypatch.setenv("FAULT_EXCHANGE_S", "5")
    replica = await make("1 forward stall")
    group = processes_of(replica)
    drawing = Drawing(replica)
    await drawing.until(Progress)
    fault.touch()

    await gone(group, 5 + FREED_S)
    await drawn_again(replica, drawing, capfd, "rank 0 cannot go on")


async def test_the_others_end_with_the_first_rank(make):
    replica = await make(parallel="ulysses=3")
    group = processes_of(replica)
    drawing = Drawing(replica)
    await drawing.until(Progress)
    os.kill(group[1].pid, signal.SIGSTOP)  # nor does one that could not end by itself stay
    os.kill(group[0].pid, signal.SIGKILL)

    await gone(group, FREED_S)
    assert len(await drawing.files()) == 2
    assert replica.restarts == 1


async def test_a_first_rank_that_is_stopped_holds_no_others_and_is_replaced(make):
    replica = await make(patience=SHORT)
    first, other = processes_of(replica)
    drawing = Drawing(replica)
    await drawing.until(Progress)
    os.kill(first.pid, signal.SIGSTOP)

    async with asyncio.timeout(STOPPED_S):
        while other.status() != psutil.STATUS_ZOMBIE:  # its parent cannot take note of it
            await asyncio.sleep(0.02)
    await gone([first, other], SHORT.silent_s + FREED_S)
    assert len(await drawing.files()) == 2
    assert replica.restarts == 1


@pytest.mark.parametrize("how", ["raise", "kill"])
async def test_a_rank_that_is_lost_while_loading_is_started_again(make, fault, capfd, how):
    fault.touch()

    replica = await make(f"1 load {how}")

    assert replica.state == "ready"
    assert replica.restarts == 1
    why = {"raise": "rank 1 cannot go on: RuntimeError", "kill": "rank 1 was killed by signal 9"}
    assert why[how] in capfd.readouterr().err


async def test_a_model_that_no_rank_can_load_is_given_up_at_once_in_words(make, tmp_path):
    replica = await make(model=str(tmp_path / "absent"))

    assert (replica.state, replica.restarts) == ("failed", 0)
    assert "absent" in replica.reason


async def test_a_model_that_one_rank_cannot_load_is_given_up_after_three_times(make, fault, capfd):
    fault.write_text("a word")
    replica = await make("1 load unload")

    assert (replica.state, replica.restarts) == ("failed", 2)
    assert "3 times" in replica.reason
    assert capfd.readouterr().err.count("rank 1 cannot go on: LoadError: a fault of the test") == 3


async def test_a_request_that_kills_a_rank_each_time_ends_alone(make, fault):
    fault.write_text("poison")
    replica = await make("1 encode kill")
    bystander = Drawing(replica, "a blue boat", params=SamplingParams(steps=4))
    poison = Drawing(replica, "poison", params=SamplingParams(steps=4))

    failed = await poison.until(Failed, 2 * BACK_S)

    assert (failed.code, replica.restarts) == ("worker_died", 3)
    assert len(await bystander.files()) == 2


async def test_cancelled_requests_leave_the_ranks_agreed(make):
    """Some amid their evaluations, some before their turn; an id that was cancelled comes again
    for another picture.
    """
    replica = await make()
    few = SamplingParams(steps=6)
    kept = Drawing(replica, "a red fox", n=4)
    stale = SamplingParams(steps=16, parallel=approximation_of("distrifusion"))
    first = Drawing(replica, "a blue boat", name="same", params=stale)
    late = [Drawing(replica, f"a house {k}", name=f"late {k}", params=few) for k in range(6)]
    await first.until(Progress)
    for name in ("same", *(f"late {k}" for k in range(0, 6, 2))):
        replica.cancel(name)
    await first.until(CancelledEvent)
    again = Drawing(replica, "a green tree", name="same", seed=8, params=few)
    drawn = [await again.files(), *[await one.files() for one in late[1::2]]]
    assert len(await kept.files()) == kept.count
    assert replica.restarts == 0

    alone = await make(parallel="")
    solo = [Drawing(alone, f"a house {k}", params=few) for k in range(1, 6, 2)]
    solo.insert(0, Drawing(alone, "a green tree", seed=8, params=few))
    for ours, theirs in zip(drawn, [await one.files() for one in solo], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert abs(decode(one).astype(int) - decode(other)).max() <= 1
