"""The lines that callers come in on: how many, and how long one may be silent.

What is asked on them is the business of the application.
"""

import asyncio
import resource
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fluxline.errors import ConfigError

HEAD_S = 10.0  # for the head of a request to arrive whole
STALLED_S = 60  # for what was sent to be read, and between two looks whether a caller is there
MOST_FILES = 65_536


class Connection(H11Protocol):
    """uvicorn's connection over h11, hung up on when a head is not whole in HEAD_S.

    uvicorn itself waits for ever, so that whoever opens connections and says nothing keeps a file
    of the server open with each. h11 cuts oversized heads; httptools buffers them without end.
    """

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Wait no longer once a head is whole; for the next one from its first byte on."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cease()
        elif self._due is None:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read; hang up without a word if an answer has begun already.

        The application may still be about to answer: nothing more is said to this caller.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._cease()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._due = self.loop.call_later(HEAD_S, self.transport.close)

    def _cease(self) -> None:
        if self._due:
            self._due.cancel()
            self._due = None


def listen(host: str, port: int) -> socket.socket:
    """Bind, so that a port that is taken is known before a model is loaded. Raises ConfigError.

    Where the system can, it hangs up on callers who vanished or stopped reading.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listener = socket.create_server(address, family=family, backlog=2048)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # asyncio does so for sockets that name their protocol, which create_server's do not. Without it
    # a body waits 40 ms for the acknowledgement of its head, on every line that is kept open.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections take it from their listener
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, STALLED_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STALLED_S)
    return listener


def allow_many_connections() -> None:
    """Raise how many files this process may have open: a flood of callers must not use them up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MOST_FILES and soft != resource.RLIM_INFINITY:
        most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
