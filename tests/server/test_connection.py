"""Lines: how many there may be, and that nobody keeps one without a word.

What the running server does with them: `tests/faults/test_clients.py`.
"""

import resource
import socket
import subprocess
import sys

import pytest

from fluxline.server.connection import STALLED_S, listen


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone can")
def test_a_caller_who_vanished_or_stopped_reading_is_noticed():
    with listen("127.0.0.1", 0) as listener:
        caller = socket.create_connection(listener.getsockname())
        line, _ = listener.accept()
        with caller, line:
            limit_ms = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            idle_s = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            is_looked_after = line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    assert (limit_ms, idle_s, is_looked_after) == (1000 * STALLED_S, STALLED_S, 1)


def test_an_answer_does_not_wait_until_its_beginning_was_acknowledged():
    with listen("127.0.0.1", 0) as listener:
        caller = socket.create_connection(listener.getsockname())
        line, _ = listener.accept()
        with caller, line:
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 300, 300), (64, 64, 64)])
def test_as_many_files_as_the_system_lets_are_used(soft, hard, after):
    code = (
        "import resource; from fluxline.server.connection import allow_many_connections;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "allow_many_connections(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert int(said.stdout) == after
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 0
