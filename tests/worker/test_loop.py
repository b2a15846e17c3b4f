"""The worker's side of the conversation, in this process, with a fake engine."""

import asyncio
import socket
import threading

import pytest

from fluxline import wire
from fluxline.ability import EngineStats
from fluxline.errors import LoadError, UnknownLora
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    LoraRef,
    SamplingParams,
)
from fluxline.worker.loop import EXIT_BROKEN, EXIT_CANNOT_LOAD, EXIT_OK, converse
from tests.worker.fake_engine import INFO, FakeEngine, picture


class Talk:
    """The fleet's end of a socket whose other end a worker thread serves."""

    def __init__(self, open_engine):
        self.sock, self._theirs = socket.socketpair()
        self.sock.settimeout(10)
        self.code = None
        self._thread = threading.Thread(target=self._run, args=(open_engine,))
        self._thread.start()

    def _run(self, open_engine):
        with self._theirs:
            self.code = converse(self._theirs, open_engine)

    def send(self, message):
        self.sock.sendall(wire.frame(message))

    def hear(self):
        header = self.sock.recv(4, socket.MSG_WAITALL)
        body = self.sock.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL)

        async def decoded():
            reader = asyncio.StreamReader()
            reader.feed_data(header + body)
            return await wire.read_from_worker(reader)

        message = asyncio.run(decoded())
        return wire.event_of(message) if isinstance(message, wire.Happened) else message

    def hear_until(self, kind):
        heard = []
        while not heard or not isinstance(heard[-1], kind):
            heard.append(self.hear())
        return heard

    def end(self):
        self.sock.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.code


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def talk(engine):
    talk = Talk(lambda: engine)
    yield talk
    talk.end()


def request(prompt="a fox", **fields):
    return GenerationRequest(id=fields.pop("id", "a"), prompt=prompt, seed=7, **fields)


def test_it_says_what_it_serves_and_draws(talk):
    assert talk.hear() == wire.Ready((INFO,))

    talk.send(wire.Submit(request(n=2)))

    heard = talk.hear_until(Done)
    images = [event.image.data for event in heard if isinstance(event, ImageReady)]
    assert images == [picture(request(n=2), k) for k in (0, 1)]


def test_a_refusal_says_the_field_and_leaves_others_alone(talk):
    talk.hear()
    talk.send(wire.Submit(request(params=SamplingParams(width=4096))))
    talk.send(wire.Submit(request(id="b")))

    refusal = talk.hear()
    assert (refusal.request_id, refusal.code, refusal.field) == ("a", "invalid_value", "width")
    assert talk.hear_until(Done)[-1].request_id == "b"


def test_an_engine_that_breaks_on_accepting_refuses_that_request_only(talk):
    talk.hear()
    talk.send(wire.Submit(request("broken")))
    talk.send(wire.Submit(request(id="b")))

    assert talk.hear().code == "internal_error"
    assert talk.hear_until(Done)[-1].request_id == "b"


def test_cancel_reaches_the_engine(talk, engine):
    talk.hear()
    talk.send(wire.Submit(request("hang")))
    talk.send(wire.Cancel("a"))

    talk.hear_until(CancelledEvent)
    assert engine.cancelled == ["a"]


def test_stop_ends_the_worker_well(talk):
    talk.hear()
    talk.send(wire.Submit(request("hang")))
    talk.send(wire.Stop())

    assert talk.end() == EXIT_OK


def test_a_closed_socket_ends_the_worker(talk):
    talk.hear()

    assert talk.end() == EXIT_OK


def test_a_garbage_frame_ends_the_worker_with_an_error(talk):
    talk.hear()
    talk.sock.sendall(b"\xff\xff\xff\xffgarbage")

    assert talk.end() == EXIT_BROKEN


def test_a_picture_no_frame_can_carry_fails_its_request(talk, engine, monkeypatch):
    monkeypatch.setattr(wire, "FRAME_LIMIT", 2**16 + 8)
    talk.hear()
    talk.send(wire.Submit(request()))

    assert "too large" in talk.hear_until(Failed)[-1].message


def test_a_model_that_cannot_be_loaded_is_reported():
    def open_engine():
        raise LoadError("no such model")

    talk = Talk(open_engine)

    assert talk.hear() == wire.Fatal("no such model")
    assert talk.end() == EXIT_CANNOT_LOAD


def test_an_unexpected_fault_on_opening_ends_the_process_so_that_it_is_tried_again():
    def open_engine():
        raise ValueError("unexpected")

    assert Talk(open_engine).end() == EXIT_BROKEN


@pytest.fixture
def restless(monkeypatch, engine):
    """It looks ten times as often at what has been done."""
    monkeypatch.setattr("fluxline.worker.loop.TELL_S", 0.1)
    talk = Talk(lambda: engine)
    yield talk
    talk.end()


def test_what_the_engine_has_done_is_told_even_when_it_does_nothing(restless):
    talk = restless
    talk.hear_until(wire.Ready)

    told = [talk.hear() for _ in range(2)]

    assert told == 2 * [wire.Told(EngineStats())]


# ---- requests whose LoRAs are still on their way


class Fetching(FakeEngine):
    """Takes until it is let go for a request that names a LoRA; refuses `none`."""

    def __init__(self):
        super().__init__()
        self.asked, self.come, self.ended = threading.Event(), threading.Event(), threading.Event()

    def start(self, request, publish):
        if request.params.loras:
            self.asked.set()
            assert self.come.wait(10)
        if request.prompt == "none":
            self.ended.set()
            raise UnknownLora("no LoRA here")
        super().start(request, publish)

    def cancel(self, request_id):
        super().cancel(request_id)
        self.ended.set()


@pytest.fixture
def fetching():
    return Fetching()


@pytest.fixture
def slow(fetching):
    """A talk in which request `a` waits for its LoRA."""
    talk = Talk(lambda: fetching)
    talk.hear()
    yield talk
    fetching.come.set()
    talk.end()


def worn(prompt="a fox", **fields):
    return request(prompt, params=SamplingParams(loras=(LoraRef("far/away"),)), **fields)


def test_a_lora_on_its_way_holds_up_nobody(slow, fetching):
    slow.send(wire.Submit(worn()))
    assert fetching.asked.wait(10)
    slow.send(wire.Submit(request("hang", id="b")))
    slow.send(wire.Cancel("b"))
    assert slow.hear_until(CancelledEvent)[-1].request_id == "b"

    fetching.come.set()
    assert slow.hear_until(Done)[-1].request_id == "a"


def test_who_is_cancelled_before_his_lora_is_there_hears_so_at_once_and_nothing_more(
    slow, fetching
):
    slow.send(wire.Submit(worn("hang")))
    assert fetching.asked.wait(10)
    slow.send(wire.Cancel("a"))
    assert slow.hear() == CancelledEvent("a")

    fetching.come.set()
    assert fetching.ended.wait(10)
    assert fetching.cancelled == ["a"], "it is not drawn in vain"
    slow.send(wire.Submit(request(id="b")))
    assert {event.request_id for event in slow.hear_until(Done)} == {"b"}


def test_who_comes_again_by_the_same_id_is_drawn_and_hears_of_it(slow, fetching):
    slow.send(wire.Submit(worn("hang")))
    assert fetching.asked.wait(10)
    slow.send(wire.Cancel("a"))
    assert slow.hear() == CancelledEvent("a")
    slow.send(wire.Submit(worn("a hare")))
    slow.send(wire.Submit(request(id="b")))
    assert slow.hear_until(Done)[-1].request_id == "b"  # the reading loop is free

    fetching.come.set()
    heard = slow.hear_until(Done)
    images = [event.image.data for event in heard if isinstance(event, ImageReady)]
    assert images == [picture(worn("a hare"), 0)]
    assert {event.request_id for event in heard} == {"a"}
    assert [one.prompt for one in fetching.started if one.id == "a"] == ["hang", "a hare"]


def test_who_gives_up_twice_before_his_lora_is_there_may_come_a_third_time(slow, fetching):
    slow.send(wire.Submit(worn("none")))
    assert fetching.asked.wait(10)
    slow.send(wire.Cancel("a"))
    slow.send(wire.Submit(worn("a hare")))
    slow.send(wire.Cancel("a"))
    assert [slow.hear(), slow.hear()] == 2 * [CancelledEvent("a")]
    slow.send(wire.Submit(worn("a stag")))

    fetching.come.set()
    assert slow.hear_until(Done)[-1].request_id == "a"
    assert [one.prompt for one in fetching.started] == ["a stag"]


def test_a_lora_that_is_not_to_be_had_is_told_to_those_who_still_want_it(slow, fetching):
    slow.send(wire.Submit(worn("none")))
    slow.send(wire.Submit(worn("none", id="b")))
    assert fetching.asked.wait(10)
    slow.send(wire.Cancel("a"))
    assert slow.hear() == CancelledEvent("a")

    fetching.come.set()
    refusal = slow.hear()
    assert (refusal.request_id, refusal.code) == ("b", "lora_not_found")
    slow.send(wire.Submit(request(id="c")))
    assert {event.request_id for event in slow.hear_until(Done)} == {"c"}


def test_a_lora_on_its_way_does_not_keep_a_worker_that_shall_stop(slow, fetching):
    slow.send(wire.Submit(worn()))
    assert fetching.asked.wait(10)
    slow.send(wire.Stop())
    assert slow.end() == EXIT_OK
