"""The messages between a fleet and its workers and between ranks, and the frames that carry them.

A frame is four bytes of length, big end first, and that many bytes of msgpack. Nothing is
pickled, and nothing longer than `FRAME_LIMIT` is read or written. Which process speaks when is
the business of `fleet` and `worker`.
"""

import asyncio
import socket
from typing import TypeVar, get_args

import msgspec

from fluxline.ability import EngineStats, ModelInfo
from fluxline.errors import CapacityError, EngineError, FluxlineError, InvalidParams
from fluxline.request import Event, GenerationRequest, MemoryName

MessageT = TypeVar("MessageT")
FRAME_LIMIT = 64 * 2**20  # bytes: a 64-megapixel picture fits, a garbage length does not
HEADER_BYTES = 4

_EVENTS = {kind.__name__: kind for kind in get_args(Event)}


class Submit(msgspec.Struct, frozen=True, tag=True):
    """To the worker: draw this."""

    request: GenerationRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To the worker: stop drawing this, if you still are."""

    request_id: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To the worker: end what runs, then exit."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the worker: the engine is open and serves these models."""

    models: tuple[ModelInfo, ...]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """From the worker: the engine would not start this request. No event of it follows."""

    request_id: str
    code: str
    message: str
    field: str | None = None  # of InvalidParams
    retry_after_s: float | None = None  # of CapacityError


class Happened(msgspec.Struct, frozen=True, tag=True):
    """From the worker: an event. A plain dataclass bears no tag, so its kind travels beside it."""

    kind: str
    payload: msgspec.Raw


class Told(msgspec.Struct, frozen=True, tag=True):
    """From the worker, every few seconds: what its engine has done."""

    stats: EngineStats


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """From the worker: the engine cannot be opened, and trying again would not help."""

    message: str


class Take(msgspec.Struct, frozen=True, tag=True):
    """To the other ranks of a replica: some of this request will be admitted next."""

    request: GenerationRequest


class Replay(msgspec.Struct, frozen=True, tag=True):
    """To the other ranks: do what the first does now.

    The ids are of jobs, of requests that they were told to take. worn: by the ids of those to
    admit, the digests of the adapters that they wear. before: what came of the replay before this
    one, as the first has it.
    """

    drop: tuple[str, ...]
    decode: tuple[str, ...]
    admit: tuple[str, ...]
    evaluate: tuple[str, ...]
    worn: dict[str, tuple[str, ...]]
    before: str


class TrialDecoding(msgspec.Struct, frozen=True, tag=True):
    """To the other ranks: a decoding of nothing, that the first measures. In px."""

    width: int
    height: int


class TrialForward(msgspec.Struct, frozen=True, tag=True):
    """To the other ranks: a forward of nothing, that the first measures."""

    rows: int


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """To the other ranks: make ready for trials; what those read may be made together."""


class Open(msgspec.Struct, frozen=True, tag=True):
    """To the other ranks of a replica, first: what to open, as `engine.build` understands it."""

    model: str
    parallel: str  # as `degrees_of` reads it
    precision: str = "auto"
    memory: MemoryName = "auto"
    weights_gb: float | None = None


class Over(msgspec.Struct, frozen=True, tag=True):
    """To the other ranks of a replica, last: nothing more is drawn. A line that ends without it was
    lost."""


class Joined(msgspec.Struct, frozen=True, tag=True):
    """From a rank, first: who it is, and the word that its like were told."""

    rank: int
    word: str


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Between ranks, every second, both ways."""


class Broke(msgspec.Struct, frozen=True, tag=True):
    """From a rank, last: why it cannot go on."""

    reason: str


ToRank = Open | Over | Take | Replay | Prepare | TrialForward | TrialDecoding | Alive
FromRank = Joined | Alive | Broke
ToWorker = Submit | Cancel | Stop
FromWorker = Ready | Refused | Happened | Told | Fatal

_TO_WORKER = msgspec.msgpack.Decoder(ToWorker)
_FROM_WORKER = msgspec.msgpack.Decoder(FromWorker)
_TO_RANK = msgspec.msgpack.Decoder(ToRank)
_FROM_RANK = msgspec.msgpack.Decoder(FromRank)


def happened(event: Event) -> Happened:
    """Wrap an event."""
    return Happened(type(event).__name__, msgspec.Raw(msgspec.msgpack.encode(event)))


def event_of(message: Happened) -> Event:
    """Unwrap an event. Raises EngineError for one this version does not know."""
    try:
        event: Event = msgspec.msgpack.decode(message.payload, type=_EVENTS[message.kind])
    except (KeyError, msgspec.MsgspecError) as exc:
        raise EngineError(f"the worker sent a broken event of kind {message.kind!r}") from exc
    return event


def refused(request_id: str, error: FluxlineError) -> Refused:
    """Say why the engine would not start a request."""
    return Refused(
        request_id,
        error.code,
        error.message,
        field=error.field if isinstance(error, InvalidParams) else None,
        retry_after_s=error.retry_after_s if isinstance(error, CapacityError) else None,
    )


def frame(message: ToWorker | FromWorker | ToRank | FromRank) -> bytes:
    """Encode a message with its length before it. Raises EngineError when it is too long."""
    body = msgspec.msgpack.encode(message)
    if len(body) > FRAME_LIMIT:
        raise EngineError(f"a message of {len(body)} bytes exceeds the limit of {FRAME_LIMIT}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


async def read_from_worker(reader: asyncio.StreamReader) -> FromWorker | None:
    """Await the next message of a worker; None when it has closed its end.

    Raises EngineError for a frame that is too long, cut short, or not one of ours.
    """
    try:
        header = await reader.readexactly(HEADER_BYTES)
    except (asyncio.IncompleteReadError, ConnectionError) as exc:
        if getattr(exc, "partial", b""):
            raise EngineError("the worker's last frame was cut short") from exc
        return None
    try:
        body = await reader.readexactly(_length(header))
    except (asyncio.IncompleteReadError, ConnectionError) as exc:
        raise EngineError("the worker's last frame was cut short") from exc
    try:
        message: FromWorker = _FROM_WORKER.decode(body)
    except msgspec.MsgspecError as exc:
        raise EngineError(f"the worker sent a frame that is no message: {exc}") from exc
    return message


def receive_to_worker(sock: socket.socket) -> ToWorker | None:
    """Block until the next message for this worker; None when the other end is closed.

    Raises EngineError for a frame that is too long, cut short, or not one of ours.
    """
    return _received(sock, _TO_WORKER)


def receive_to_rank(sock: socket.socket) -> ToRank | None:
    """Block until the first rank's next message; None when it is gone. Raises as above."""
    return _received(sock, _TO_RANK)


def receive_from_rank(sock: socket.socket) -> FromRank | None:
    """Block until a rank's next message; None when it is gone. Raises as above."""
    return _received(sock, _FROM_RANK)


def _received(sock: socket.socket, decoder: msgspec.msgpack.Decoder[MessageT]) -> MessageT | None:
    header = _exactly(sock, HEADER_BYTES)
    if not header:
        return None
    length = _length(header)
    body = _exactly(sock, length)
    if len(header) < HEADER_BYTES or len(body) < length:
        raise EngineError("the last frame was cut short")
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as exc:
        raise EngineError(f"a frame is no message: {exc}") from exc


def _length(header: bytes) -> int:
    length = int.from_bytes(header, "big")
    if length > FRAME_LIMIT:
        raise EngineError(f"a frame announces {length} bytes; the limit is {FRAME_LIMIT}")
    return length


def _exactly(sock: socket.socket, count: int) -> bytes:
    """Read count bytes, or what came before the end."""
    received = bytearray()
    while len(received) < count:
        try:
            chunk = sock.recv(min(count - len(received), 2**20))
        except ConnectionError:
            break
        if not chunk:
            break
        received += chunk
    return bytes(received)
