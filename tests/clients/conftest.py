"""One real server with keys and gRPC for all clients, and the clients themselves."""

import subprocess

import httpx
import pytest

from tests.served import served

KEY = "client1"
PORTS = (8080, 8000, 8001)  # where the systems before us listened


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with served(folder, "--grpc-port", "0", API_KEYS="client1,client2") as server:
        yield server


@pytest.fixture(scope="session")
def here(server):
    """Put this server's addresses into a text."""

    def put(text):
        for port in PORTS:
            text = text.replace(f"http://localhost:{port}", server.url)
        return text.replace("localhost:50051", server.grpc)

    return put


@pytest.fixture(scope="session")
def http(server):
    """What any client does, with a key."""
    with httpx.Client(base_url=server.url, headers={"api-key": KEY}, timeout=60) as http:
        yield http


@pytest.fixture(scope="session")
def stranger():
    """Who has no key; for links and public addresses."""
    with httpx.Client(timeout=60) as http:
        yield http


@pytest.fixture(scope="session")
def curl(here, tmp_path_factory):
    return _curl(here, tmp_path_factory.mktemp("curl"), f'header = "api-key: {KEY}"\n')


@pytest.fixture(scope="session")
def curl_without_key(here, tmp_path_factory):
    return _curl(here, tmp_path_factory.mktemp("curl"), "")


def _curl(here, home, configuration):
    """The real curl for commands of one transfer: gives the status and the body."""
    (home / ".curlrc").write_text(
        f'silent\nshow-error\nwrite-out = "\\n%{{http_code}}"\n{configuration}'
    )

    def run(command):
        words = ["bash", "-ec", here(command)]
        environment = {"CURL_HOME": str(home), "PATH": "/usr/bin:/bin"}
        ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        body, _, status = ran.stdout.rpartition("\n")
        return int(status), body

    return run
