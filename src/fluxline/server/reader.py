"""Reads pictures of strangers in a process of its own, which holds no key and no job and may die.

Here are both ends: `Reader`, which asks, and what answers: `python -m fluxline.server.reader`.
A picture that takes too much time or memory costs that process, and nobody else anything.
"""

import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Literal

import msgspec

from fluxline import images
from fluxline.ability import ModelInfo
from fluxline.errors import InvalidParams

READ_S = 20.0
MEMORY_BYTES = 3 * 2**30
HEADER_BYTES = 4
MOST_BYTES = 48 * 2**20
"""Of all pictures of a wish, as they go on to the worker: a message to it holds 64 MiB."""
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
"""Of the environment, which may hold keys."""

_log = logging.getLogger(__name__)


Fit = Literal["cropped", "stretched", "padded"]


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """How a picture of another shape is made to fit, and what is made of a mask first.

    padded: the whole of it, its edge repeated around. is_painted: what is opaque in the mask is
    redrawn, not what is transparent. blur: of the mask, in px across and down. is_filled: what is
    redrawn begins as the colours around it. is_cut: of an image that has no mask beside it, what
    is transparent is redrawn.
    """

    fit: Fit = "cropped"
    is_painted: bool = False
    is_inverted: bool = False
    blur: tuple[float, float] = (0.0, 0.0)
    is_filled: bool = False
    is_cut: bool = False


USUAL = Manner()


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Files, and the size of what shall be drawn from them. A side that is None follows the image.

    expand: px to draw at its left, top, right, bottom. is_seen: the image is looked at and not
    drawn on, so it keeps its shape, as references do.
    """

    image: bytes | None
    mask: bytes | None = None
    references: tuple[bytes, ...] = ()
    width: int | None = None
    height: int | None = None
    info: ModelInfo
    expand: tuple[int, int, int, int] | None = None
    is_seen: bool = False
    manner: Manner = USUAL


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """PNG files to draw from, and the size in px. shape: of the image, grown if it was.

    is_cut: what is transparent in the image is in the mask.
    """

    image: bytes | None = None
    mask: bytes | None = None
    references: tuple[bytes, ...] = ()
    width: int | None
    height: int | None
    shape: tuple[int, int] | None = None
    is_cut: bool = False


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why there is nothing to draw from. field: image, mask, expand, or references[0]."""

    message: str
    field: str


_wishes = msgspec.msgpack.Decoder(Wish)
_answers: msgspec.msgpack.Decoder[Start | Refusal] = msgspec.msgpack.Decoder(Start | Refusal)


class Reader:
    """Its process is started at the first picture, and again when one was its end.

    Any thread may call it; they take turns.
    """

    def __init__(self, *, patience_s: float = READ_S) -> None:
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._is_closed = False

    def read(self, wish: Wish) -> Start:
        """Decode pictures and fit them to what was wished. Raises InvalidParams."""
        with self._turn:
            process = self._living()
            assert process.stdin is not None
            assert process.stdout is not None
            limit = threading.Timer(self._patience_s, process.kill)
            limit.start()
            try:
                _put(process.stdin, wish)
                answer = _answers.decode(_get(process.stdout))
            except (OSError, EOFError, msgspec.MsgspecError):
                _log.warning("the process that read a picture ended: %s", self._end())
                what = "one of the pictures" if wish.mask or wish.references else "image"
                message = f"{what} is broken, or takes too much time or memory to read"
                raise InvalidParams(message, field="image") from None
            finally:
                limit.cancel()
        if isinstance(answer, Start):
            return answer
        raise InvalidParams(answer.message, field=answer.field)

    def close(self) -> None:
        """End the process; what is being read is given up."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()
        with self._turn:
            self._end()

    def _living(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            if self._is_closed:
                raise InvalidParams("image cannot be read: the server stops", field="image")
            environment = {name: os.environ[name] for name in KEPT if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fluxline.server.reader"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codecs complain there, of files by strangers
                env=environment | {"OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def _end(self) -> int | None:
        """End the process, if there is one; its exit code, or the signal below 0."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        process.communicate()  # closes its pipes and reaps it
        return process.returncode


def main() -> None:
    """Answer until nobody asks any more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while True:
        try:
            wish = _wishes.decode(_get(sys.stdin.buffer))
        except EOFError:
            return
        _put(sys.stdout.buffer, answer(wish))


def answer(wish: Wish) -> Start | Refusal:
    """Decode pictures and make them fit, one after another."""
    try:
        start = _start(wish)
    except InvalidParams as exc:
        return Refusal(exc.message, exc.field)
    files = (start.image, start.mask, *start.references)
    if (total := sum(len(file) for file in files if file)) > MOST_BYTES:
        message = (
            f"the pictures are too much together: as PNG {total / 2**20:.0f} MiB of at most "
            f"{MOST_BYTES // 2**20}; send fewer or smaller ones"
        )
        return Refusal(message, "image")
    return start


def _start(wish: Wish) -> Start:
    references = tuple(_reference(wish, number) for number in range(len(wish.references)))
    if wish.image is None:
        return Start(references=references, width=wish.width, height=wish.height)
    pixels, mask = images.decode(wish.image), None
    if wish.mask is not None:
        mask = _mask(wish.mask, pixels, wish.manner)
    elif wish.manner.is_cut and not wish.is_seen:
        mask = images.decode_hole(wish.image)
    is_cut = wish.mask is None and mask is not None
    if wish.expand is not None:
        pixels, mask = images.expand(pixels, wish.expand, mask)
    width, height = size = _size(wish, pixels)
    shape = pixels.shape[1], pixels.shape[0]
    if wish.is_seen:
        pixels = images.shrink(pixels)
    else:
        fit = _fit(wish.manner)
        pixels = fit(pixels, *size)
        mask = None if mask is None else fit(mask, *size)
    if is_cut and mask is not None and not (mask >= 128).any():
        mask = None  # what is transparent has fallen away
    if mask is not None:
        images.check_mask(mask)  # what it says may have fallen away
        if wish.manner.is_filled:
            pixels = images.fill_in(pixels, mask)
    return Start(
        image=images.encode(pixels, format="png"),
        mask=None if mask is None else images.encode_mask(mask),
        references=references,
        width=width,
        height=height,
        shape=shape,
        is_cut=is_cut and mask is not None,
    )


def _reference(wish: Wish, number: int) -> bytes:
    try:
        pixels = images.decode(wish.references[number])
    except InvalidParams as exc:
        raise InvalidParams(exc.message, field=f"references[{number}]") from None
    return images.encode(images.shrink(pixels), format="png")


def _mask(file: bytes, pixels: images.Pixels, manner: Manner) -> images.Pixels:
    decode = images.decode_painted if manner.is_painted else images.decode_mask
    mask = decode(file, pixels.shape[:2])
    mask = 255 - mask if manner.is_inverted else mask
    return images.soften(mask, *manner.blur) if any(manner.blur) else mask


def _fit(manner: Manner) -> Callable[[images.Pixels, int, int], images.Pixels]:
    match manner.fit:
        case "cropped":
            return images.fit
        case "stretched":
            return images.stretch
        case "padded":
            return images.place


def _size(wish: Wish, pixels: images.Pixels) -> tuple[int, int]:
    """The size that is drawn: a grown picture keeps its own unless another is asked."""
    height, width, _ = pixels.shape
    if wish.expand is None or wish.width or wish.height:
        return wish.info.size_like((width, height), wish.width, wish.height)
    if width > wish.info.max_width or height > wish.info.max_height:
        message = (
            f"expand makes {width}x{height} of the picture, and {wish.info.name} draws at most "
            f"{wish.info.max_width}x{wish.info.max_height}: add less, or ask for a size"
        )
        raise InvalidParams(message, field="expand")
    return width, height


def _put(stream: IO[bytes], message: msgspec.Struct) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(len(body).to_bytes(HEADER_BYTES, "big") + body)
    stream.flush()


def _get(stream: IO[bytes]) -> bytes:
    """Read one message. Raises EOFError where the stream ends."""
    return _exactly(stream, int.from_bytes(_exactly(stream, HEADER_BYTES), "big"))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


if __name__ == "__main__":
    main()
