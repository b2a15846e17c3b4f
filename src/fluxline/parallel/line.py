"""The line between the first rank of a replica and the others: what to do next, and who still is.

Tensors do not travel here but between process groups. Whoever loses the line ends: a rank that has
died, has stopped or has stumbled takes the others with it within seconds, and none waits for ever
for what will not come. Both ends beat.
"""

import contextlib
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch._C._distributed_c10d import Store

from fluxline import wire
from fluxline.errors import EngineError, LoadError

BEAT_S = 1.0
SILENT_S = 10.0  # after which a rank is taken to be lost
JOIN_S = 600.0  # for all ranks to come
WHERE, WORD = "fluxline/line", "fluxline/word"

MessageT = TypeVar("MessageT")


class Lead:
    """The first rank's end."""

    def __init__(self, store: Store, host: str, ranks: int) -> None:
        self._others: dict[int, socket.socket] = {}  # by rank
        self._lock = threading.Lock()  # of what is told
        self._closed = threading.Event()
        word = secrets.token_hex(16)
        with socket.create_server((host, 0)) as server:
            server.settimeout(JOIN_S)
            store.set(WORD, word)
            store.set(WHERE, f"{host}:{server.getsockname()[1]}")
            while len(self._others) < ranks - 1:
                self._welcome(server, word)

    def watch(self, on_lost: Callable[[str], None]) -> None:
        """Begin to beat, and to listen for the others. on_lost: told why, of each that is lost, on
        a thread of its own.
        """
        threading.Thread(target=self._beat, name="line", daemon=True).start()
        for rank, sock in self._others.items():
            threading.Thread(
                target=self._listen, args=(rank, sock, on_lost), name=f"rank {rank}", daemon=True
            ).start()

    def tell(self, message: wire.ToRank) -> None:
        """Tell all others. One that is gone is not told: whoever listens knows."""
        frame = wire.frame(message)
        with self._lock:
            for sock in self._others.values():
                with contextlib.suppress(OSError):
                    sock.sendall(frame)

    def close(self) -> None:
        """Hang up: the others end."""
        self._closed.set()
        for sock in self._others.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _welcome(self, server: socket.socket, word: str) -> None:
        try:
            sock, _ = server.accept()
        except TimeoutError:
            missing = "not all ranks have come"
            raise LoadError(f"{missing} within {JOIN_S:g} s") from None
        sock.settimeout(SILENT_S)
        with contextlib.suppress(OSError, EngineError):
            joined = wire.receive_from_rank(sock)
            if isinstance(joined, wire.Joined) and secrets.compare_digest(joined.word, word):
                self._others[joined.rank] = sock
                return
        sock.close()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            self.tell(wire.Alive())

    def _listen(self, rank: int, sock: socket.socket, on_lost: Callable[[str], None]) -> None:
        why = "is gone"
        try:
            for message in _heard(sock, wire.receive_from_rank):
                if isinstance(message, wire.Broke):
                    why = f"cannot go on: {message.reason}"
                    break
        except TimeoutError:
            why = f"has said nothing for {SILENT_S:g} s"
        except (OSError, EngineError) as exc:
            why = f"cannot be understood: {exc}"
        if not self._closed.is_set():
            on_lost(f"rank {rank} {why}")


class Follow:
    """Another rank's end."""

    def __init__(self, store: Store, rank: int) -> None:
        host, _, port = store.get(WHERE).decode().rpartition(":")
        self._sock = socket.create_connection((host, int(port)), timeout=JOIN_S)
        self._sock.settimeout(SILENT_S)
        self._lock = threading.Lock()
        self._say(wire.Joined(rank, store.get(WORD).decode()))

    def watch(self, on_message: Callable[[wire.ToRank], None], on_lost: Callable[[], None]) -> None:
        """Begin to beat, and to listen: each message in turn, and the end of the line, which is
        also that of a first rank that says nothing any more.
        """
        for act in (self._beat, lambda: self._listen(on_message, on_lost)):
            threading.Thread(target=act, name="line", daemon=True).start()

    def broke(self, reason: str) -> None:
        """Say why this rank cannot go on."""
        self._say(wire.Broke(reason))

    def _beat(self) -> None:
        is_over = threading.Event()
        while not is_over.wait(BEAT_S):
            self._say(wire.Alive())

    def _listen(
        self, on_message: Callable[[wire.ToRank], None], on_lost: Callable[[], None]
    ) -> None:
        with contextlib.suppress(OSError, EngineError):
            said: Iterator[wire.ToRank] = _heard(self._sock, wire.receive_to_rank)
            for message in said:
                if not isinstance(message, wire.Alive):
                    on_message(message)
        on_lost()

    def _say(self, message: wire.FromRank) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._sock.sendall(wire.frame(message))


def _heard(
    sock: socket.socket, receive: Callable[[socket.socket], MessageT | None]
) -> Iterator[MessageT]:
    """Yield what the other end says until it hangs up. Raises TimeoutError when it falls silent.

    Looks are counted instead of seconds, so that who was stopped himself and wakes blames nobody.
    """
    ear = select.poll()
    ear.register(sock, select.POLLIN)
    silent_s = 0.0
    while silent_s < SILENT_S:
        if not ear.poll(1000 * BEAT_S):
            silent_s += BEAT_S
        elif (message := receive(sock)) is None:
            return
        else:
            silent_s = 0.0
            yield message
    raise TimeoutError
