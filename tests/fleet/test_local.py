"""A replica in a real process behind a real socket: it dies, and its requests do not."""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from fluxline.errors import InvalidParams, NotReady
from fluxline.fleet.local import BackOff, LocalReplica
from fluxline.fleet.process import WorkerCommand, WorkerProcess
from fluxline.fleet.watch import Patience
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    SamplingParams,
    Started,
    Terminal,
)
from tests.worker.fake_engine import INFO, picture

QUICK = BackOff(first_s=0.01, limit_s=0.02)
SHORT = Patience(look_s=0.05, silent_s=2.5)
SHORTER = Patience(look_s=0.05, stuck_s=0.5)
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)


@pytest.fixture
async def make():
    made = []

    def start(model="fake", engine="open_engine", patience=None):
        command = WorkerCommand(
            model=model,
            device="cpu",
            engine=f"tests.worker.fake_engine:{engine}",
        )
        made.append(LocalReplica(command, back_off=QUICK, patience=patience))
        made[-1].start()
        return made[-1]

    yield start
    for replica in made:
        await replica.stop()


class Listener:
    """Collects a request's events and lets a test await them."""

    def __init__(self, replica, prompt, **fields):
        self.request = GenerationRequest(id=f"{prompt}-{id(self)}", prompt=prompt, seed=7, **fields)
        self.events = []
        self._news = asyncio.Event()
        replica.submit(self.request, self._take)

    def _take(self, event):
        self.events.append(event)
        self._news.set()

    async def until(self, kind):
        async with asyncio.timeout(60):
            while not any(isinstance(event, kind) for event in self.events):
                self._news.clear()
                await self._news.wait()
        return next(event for event in self.events if isinstance(event, kind))

    @property
    def images(self):
        return [event.image.data for event in self.events if isinstance(event, ImageReady)]


async def restarted(replica):
    """Wait until its worker has been replaced."""
    async with asyncio.timeout(60):
        while replica.restarts == 0 or replica.state != "ready":
            await asyncio.sleep(0.01)


async def test_it_becomes_ready_and_draws(make):
    replica = make()
    assert replica.state == "starting"

    assert await replica.settled() == "ready"
    fox = Listener(replica, "a fox", n=2)
    await fox.until(Done)

    assert replica.models == (INFO,)
    assert fox.images == [picture(fox.request, 0), picture(fox.request, 1)]


async def test_nothing_is_accepted_before_it_is_ready(make):
    with pytest.raises(NotReady, match="loading"):
        Listener(make(), "a fox")


async def test_a_refusal_arrives_as_the_error_it_was(make):
    replica = make()
    await replica.settled()

    refusal = await Listener(replica, "big", params=SamplingParams(width=999)).until(InvalidParams)

    assert refusal.field == "width"


async def test_a_request_outlives_its_killed_worker_and_completes_once(make, monkeypatch, tmp_path):
    marker = tmp_path / "marker"
    monkeypatch.setenv("FAKE_MARKER", str(marker))
    replica = make(engine="open_flaky")
    await replica.settled()
    held = Listener(replica, "hang after one", n=2)
    await held.until(ImageReady)

    marker.touch()
    os.kill(replica.pid, signal.SIGKILL)
    await held.until(Done)

    assert held.images == [picture(held.request, 0), picture(held.request, 1)]
    assert sum(isinstance(event, Terminal) for event in held.events) == 1
    assert replica.restarts == 1


async def test_a_request_that_kills_its_worker_fails_alone(make):
    replica = make()
    await replica.settled()
    bystander = Listener(replica, "hang")
    await bystander.until(Started)
    poison = Listener(replica, "poison")
    late = [Listener(replica, f"late {number}") for number in range(2)]

    # The bystander hangs: were it never left alone with the worker, nothing could be told apart.
    await restarted(replica)
    replica.cancel(bystander.request.id)
    failed = await poison.until(Failed)
    for listener in late:
        await listener.until(Done)

    assert (failed.code, replica.restarts) == ("worker_died", 3)
    assert poison.request.id in failed.message
    await bystander.until(CancelledEvent)


async def test_a_worker_that_cannot_load_is_not_tried_again(make):
    replica = make("absent")

    assert await replica.settled() == "failed"
    await replica.ended()

    assert (replica.reason, replica.restarts) == ("no model called absent", 0)


async def test_a_worker_that_keeps_dying_while_loading_is_given_up(make):
    replica = make("killed")

    await replica.ended()

    assert replica.state == "failed"
    assert "killed by signal 9 while loading, 3 times" in replica.reason


async def test_cancel_ends_a_running_request(make):
    replica = make()
    await replica.settled()
    hanging = Listener(replica, "hang")
    await hanging.until(Started)

    replica.cancel(hanging.request.id)
    replica.cancel("unknown")

    await hanging.until(CancelledEvent)
    assert replica.restarts == 0


async def test_stop_fails_what_runs_as_something_to_try_again(make):
    replica = make()
    await replica.settled()
    hanging = Listener(replica, "hang")
    await hanging.until(Started)

    await replica.stop()

    assert isinstance(hanging.events[-1], Failed)
    assert hanging.events[-1].code == "overloaded"
    assert (replica.state, replica.pid) == ("stopped", None)


async def test_a_cancel_that_a_dying_worker_took_along_is_not_lost(make):
    replica = make()
    await replica.settled()
    hanging = Listener(replica, "hang")
    await hanging.until(Started)
    os.kill(replica.pid, signal.SIGSTOP)  # it will never read what comes now

    replica.cancel(hanging.request.id)
    os.kill(replica.pid, signal.SIGKILL)

    await hanging.until(CancelledEvent)
    await replica.settled()
    assert await Listener(replica, "a fox").until(Done)


async def test_a_worker_that_breaks_while_opening_is_tried_again(make):
    replica = make("crash")

    assert await replica.settled() == "failed"
    assert replica.restarts == 2
    assert "exited with code 1 while loading, 3 times" in replica.reason


async def test_a_worker_that_says_nothing_is_replaced_though_nobody_asked_it_for_anything(make):
    replica = make(patience=SHORT)
    await replica.settled()
    os.kill(replica.pid, signal.SIGSTOP)

    while replica.restarts == 0:
        await asyncio.sleep(0.01)
    said = replica.reason
    await replica.settled()

    assert said == "the worker said nothing for 2.5 s and was killed and is being restarted"
    assert await Listener(replica, "a fox").until(Done)


async def test_an_engine_that_gets_nowhere_is_replaced_and_its_request_is_drawn(
    make, monkeypatch, tmp_path
):
    marker = tmp_path / "marker"
    monkeypatch.setenv("FAKE_MARKER", str(marker))
    replica = make(engine="open_flaky", patience=SHORTER)
    await replica.settled()
    held = Listener(replica, "hang")
    await held.until(Started)

    marker.touch()
    await held.until(Done)

    assert held.images == [picture(held.request, 0)]
    assert replica.restarts == 1


async def test_a_request_at_which_every_worker_hangs_fails(make):
    replica = make(patience=SHORTER)
    await replica.settled()

    assert (await Listener(replica, "hang").until(Failed)).code == "worker_died"


async def test_a_worker_that_cannot_be_started_for_want_of_something_is_tried_again_and_again(make):
    replica = make()
    await replica.settled()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no process gets its socket now
    try:
        os.kill(replica.pid, signal.SIGKILL)
        while replica.restarts < 5:
            await asyncio.sleep(0.01)
        state, reason = replica.state, replica.reason
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert (state, await replica.settled()) == ("restarting", "ready")
    assert "cannot be started (Too many open files)" in reason
    await Listener(replica, "a fox").until(Done)


async def test_a_worker_whose_program_is_not_there_is_given_up(make, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/not/there")
    replica = make()

    assert await replica.settled() == "failed"
    assert replica.restarts == 2
    assert "cannot be started (No such file or directory), 3 times" in replica.reason


async def test_a_worker_whose_device_is_lost_is_replaced_and_its_requests_are_drawn(
    make, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAKE_MARKER", str(tmp_path / "marker"))
    replica = make(engine="open_lost")
    await replica.settled()

    await Listener(replica, "a fox").until(Done)

    assert replica.restarts == 1


async def test_a_worker_that_talks_garbage_is_replaced(make, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_MARKER", str(tmp_path / "marker"))
    replica = make(engine="open_garbling")

    await replica.settled()
    await restarted(replica)

    await Listener(replica, "a fox").until(Done)
    assert replica.restarts == 1


async def test_a_worker_ends_when_its_parent_is_gone():
    command = WorkerCommand(
        model="fake", device="cpu", engine="tests.worker.fake_engine:open_engine"
    )
    process = await WorkerProcess.spawn(command)
    await anext(process.messages())

    assert await process.end(grace_s=10) == "exited with code 0"


def test_back_off_doubles_up_to_a_limit_and_is_forgiven():
    back_off = BackOff()

    waits = [0.0]
    for _ in range(8):
        waits.append(back_off.after(waits[-1], ready_for_s=1))

    assert waits[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert back_off.after(30, ready_for_s=61) == 0.5


def test_every_option_of_a_worker_is_on_its_command_line():
    command = WorkerCommand(
        model="big", device="cuda:1", member=1, members=2, log_level="debug", log_format="json"
    )

    spelt = command.argv(7)

    assert {
        "--fd=7",
        "--model=big",
        "--device=cuda:1",
        "--share=1/2",
        "--log-level=debug",
        "--log-format=json",
    } < set(spelt)
