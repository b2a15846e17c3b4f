"""The wire carries what travels, and nothing else."""

import asyncio
import socket
import threading

import pytest

from fluxline import errors, wire
from fluxline.errors import (
    CapacityError,
    CheckpointMismatch,
    EngineError,
    FluxlineError,
    InvalidParams,
    LoadError,
    error_of,
)
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    Progress,
    Queued,
    SamplingParams,
    Started,
)
from tests.worker.fake_engine import INFO, FakeEngine

REQUEST = GenerationRequest(
    id="a", prompt="a 🦊", seed=2**63 - 1, params=SamplingParams(width=64, guidance=3.5)
)
EVENTS = [
    Queued("a", 3),
    Started("a"),
    Progress("a", 0, 1, 4, b"\x00\xff"),
    FakeEngine()._ready(REQUEST, 0),
    Done("a"),
    Failed("a", "out_of_memory", "no"),
    CancelledEvent("a"),
]


async def fed(data: bytes) -> wire.FromWorker | None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await wire.read_from_worker(reader)


def received(data: bytes) -> wire.ToWorker | None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (ours.sendall(data), ours.close()))
        sender.start()
        try:
            return wire.receive_to_worker(theirs)
        finally:
            sender.join()


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
async def test_every_event_arrives_as_it_left(event):
    message = await fed(wire.frame(wire.happened(event)))

    assert isinstance(message, wire.Happened)
    assert wire.event_of(message) == event


@pytest.mark.parametrize("message", [wire.Submit(REQUEST), wire.Cancel("a"), wire.Stop()])
def test_every_message_reaches_the_worker_as_it_left(message):
    assert received(wire.frame(message)) == message


@pytest.mark.parametrize("message", [wire.Ready((INFO,)), wire.Fatal("no")])
async def test_every_message_reaches_the_fleet_as_it_left(message):
    assert await fed(wire.frame(message)) == message


def every_error() -> list[FluxlineError]:
    """One of each class that a request can end with."""
    kinds = [getattr(errors, name) for name in errors.__all__ if name != "error_of"]
    extra = {InvalidParams: {"field": "width"}}
    return [
        kind("no", **extra.get(kind, {"retry_after_s": 3.5} if later else {}))
        for kind in kinds
        if not issubclass(kind, CheckpointMismatch) and kind is not FluxlineError
        for later in [issubclass(kind, CapacityError)]
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_error_on_the_other_side(error):
    sent = wire.refused("a", error)
    rebuilt = error_of(sent.code, sent.message, field=sent.field, retry_after_s=sent.retry_after_s)

    assert type(rebuilt) is type(error)
    assert vars(rebuilt) == vars(error)


def test_a_code_nobody_knows_is_our_fault():
    assert type(error_of("magic", "?")) is EngineError
    assert type(error_of(CheckpointMismatch.code, "?")) is LoadError


BAD_FRAMES = {
    "huge length": b"\xff\xff\xff\xff",
    "just over the limit": (wire.FRAME_LIMIT + 1).to_bytes(4, "big"),
    "garbage": b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1",
    "wrong shape": b"\x00\x00\x00\x01\x90",
    "cut header": b"\x00\x00",
    "cut body": b"\x00\x00\x00\x09abc",
}


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES)
async def test_a_bad_frame_is_an_error_for_the_fleet(data):
    with pytest.raises(EngineError, match="frame"):
        await fed(data)


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_bad_frame_is_an_error_for_the_worker(data):
    with pytest.raises(EngineError, match="frame"):
        received(data)


async def test_a_closed_socket_is_the_end_and_not_an_error():
    assert await fed(b"") is None
    assert received(b"") is None


def test_a_message_over_the_limit_is_never_sent():
    with pytest.raises(EngineError, match="exceeds the limit"):
        wire.frame(wire.Fatal("x" * (wire.FRAME_LIMIT + 1)))


def test_an_event_of_an_unknown_kind_is_an_error():
    image = wire.happened(ImageReady("a", FakeEngine()._ready(REQUEST, 0).image))

    with pytest.raises(EngineError, match="Surprise"):
        wire.event_of(wire.Happened("Surprise", image.payload))
