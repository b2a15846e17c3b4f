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
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from fluxline import wire
from fluxline.errors import EngineError, LoadError

BEAT_S = 1.0
SILENT_S = 10.0  # after which a rank is taken to be lost
JOIN_S = 600.0  # for all ranks to come
AGAIN_S = 0.5  # between two calls to a first rank that may have gone, and come again elsewhere
LINE = "fluxline/line"
LOOPBACK = ("localhost", "127.0.0.1", "::1")

MessageT = TypeVar("MessageT")


class Lead:
    """The first rank's end. on_lost: told why, once for each that is lost, on a thread of its own.

    host: where the others reach this rank. Only who knows the word is let in, which the store tells
    them. Raises LoadError where not all come.
    """

    def __init__(self, store: Store, host: str, ranks: int) -> None:
        self._others: dict[int, socket.socket] = {}  # by rank
        self._lock = threading.Lock()  # of what is told
        self._is_over = threading.Event()  # none is lost any more
        self._closed = threading.Event()
        self.word = secrets.token_hex(16)
        with _listening(host) as server:
            server.settimeout(JOIN_S)
            store.set(LINE, f"{host} {server.getsockname()[1]} {self.word}")
            while missing := set(range(1, ranks)) - set(self._others):
                self._welcome(server, missing)

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
        """Tell all others. One that is gone is not told: whoever listens knows. After Over, none is
        lost any more."""
        if isinstance(message, wire.Over):
            self._is_over.set()
        frame = wire.frame(message)
        with self._lock:
            for sock in self._others.values():
                with contextlib.suppress(OSError):
                    sock.sendall(frame)

    def close(self) -> None:
        """Hang up: the others end, if they have not."""
        self._is_over.set()
        self._closed.set()
        for sock in self._others.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _welcome(self, server: socket.socket, missing: set[int]) -> None:
        try:
            sock, _ = server.accept()
        except TimeoutError:
            who = ", ".join(str(rank) for rank in sorted(missing))
            raise LoadError(f"not all ranks have come within {JOIN_S:g} s: no {who}") from None
        sock.settimeout(SILENT_S)
        with contextlib.suppress(OSError, EngineError):
            joined = wire.receive_from_rank(sock)
            if isinstance(joined, wire.Joined) and joined.rank in missing and self._knows(joined):
                self._others[joined.rank] = sock
                return
        sock.close()

    def _knows(self, joined: wire.Joined) -> bool:
        return secrets.compare_digest(joined.word.encode(), self.word.encode())

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
        if not self._is_over.is_set():
            on_lost(f"rank {rank} {why}")


class Follow:
    """Another rank's end. Raises LoadError where the first cannot be reached."""

    def __init__(self, store: Store, rank: int) -> None:
        self._sock, self.word = _called(store)
        self._sock.settimeout(SILENT_S)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._say(wire.Joined(rank, self.word))

    def watch(self, on_message: Callable[[wire.ToRank], None], on_lost: Callable[[], None]) -> None:
        """Begin to beat, and to listen: each message in turn, and the end of the line, which is
        also that of a first rank that says nothing any more.
        """
        for act in (self._beat, lambda: self._listen(on_message, on_lost)):
            threading.Thread(target=act, name="line", daemon=True).start()

    def broke(self, reason: str) -> None:
        """Say why this rank cannot go on."""
        self._say(wire.Broke(reason))

    def close(self) -> None:
        """Hang up, which the first must not take for a loss any more."""
        self._is_over.set()
        with self._lock:
            self._sock.close()

    def _beat(self) -> None:
        while not self._is_over.wait(BEAT_S):
            self._say(wire.Alive())

    def _listen(
        self, on_message: Callable[[wire.ToRank], None], on_lost: Callable[[], None]
    ) -> None:
        with contextlib.suppress(OSError, EngineError):
            said: Iterator[wire.ToRank] = _heard(self._sock, wire.receive_to_rank)
            for message in said:
                if not isinstance(message, wire.Alive):
                    on_message(message)
                if isinstance(message, wire.Over):
                    return
        on_lost()

    def _say(self, message: wire.FromRank) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._sock.sendall(wire.frame(message))


def _listening(host: str) -> socket.socket:
    """On this machine alone if the others are there, else on all its addresses: the name by which
    other nodes know it may mean another one here."""
    if host in LOOPBACK:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, 0), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _called(store: Store) -> tuple[socket.socket, str]:
    """A line to the first rank, and the word. Where nobody answers, another may yet come."""
    over = time.monotonic() + JOIN_S
    while True:
        try:
            host, port, word = store.get(LINE).decode().split()
            return socket.create_connection((host, int(port)), timeout=JOIN_S), word
        except (OSError, dist.DistError) as exc:
            if not isinstance(exc, ConnectionRefusedError) or time.monotonic() > over:
                raise LoadError(f"the first rank cannot be reached: {exc}") from exc
        time.sleep(AGAIN_S)


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
