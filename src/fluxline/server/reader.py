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
from typing import IO

import msgspec

from fluxline import images
from fluxline.errors import InvalidParams
from fluxline.request import ModelInfo

READ_S = 20.0
MEMORY_BYTES = 3 * 2**30
HEADER_BYTES = 4
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
"""Of the environment, which may hold keys."""

_log = logging.getLogger(__name__)


class Wish(msgspec.Struct, frozen=True):
    """A file, and the size of what shall be drawn from it. A side that is None follows it."""

    file: bytes
    width: int | None
    height: int | None
    info: ModelInfo
    is_stretched: bool


class Start(msgspec.Struct, frozen=True, tag=True):
    """A picture to start from: a PNG file of width x height px. shape: of what was given."""

    file: bytes
    width: int
    height: int
    shape: tuple[int, int]


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why a file is no picture to start from."""

    message: str


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
        """Decode a picture and fit it to what was wished. Raises InvalidParams."""
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
                message = "image is broken, or takes too much time or memory to read"
                raise InvalidParams(message, field="image") from None
            finally:
                limit.cancel()
        if isinstance(answer, Start):
            return answer
        raise InvalidParams(answer.message, field="image")

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
    """Decode a picture and fit it: its middle in the shape that is wished, or the whole of it."""
    try:
        pixels = images.decode(wish.file)
    except InvalidParams as exc:
        return Refusal(exc.message)
    height, width, _ = pixels.shape
    size = wish.info.size_like((width, height), wish.width, wish.height)
    fitted = (images.stretch if wish.is_stretched else images.fit)(pixels, *size)
    file = images.encode(fitted, format="png")
    return Start(file=file, width=size[0], height=size[1], shape=(width, height))


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
