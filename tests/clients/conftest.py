"""One real server with keys and gRPC for all clients, and the clients themselves."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.served import served

KEY = "client1"
PORTS = (8080, 8000, 8001)  # where the systems before us listened
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


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


@pytest.fixture(scope="session")
def stopped(server, http):
    """Hold the process that draws, so that a drawing takes longer than anybody foresaw."""
    much = {"prompt": "a red fox", "n": 4, "steps": 20}
    tasks = Path(f"/proc/{server.pid}/task").glob("*/children")
    children = [Path("/proc") / child for task in tasks for child in task.read_text().split()]
    [worker] = [
        int(child.name)
        for child in children
        if b"fluxline.worker" in (child / "cmdline").read_bytes()
    ]

    @contextmanager
    def stop():
        http.post("/v1/images/generations", json=much)  # or it foresees what was held before
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    return stop


@pytest.fixture(scope="session")
def node(pytestconfig, server):
    """Run a script of `node/` with the server's address, a key and more; gives what it printed."""
    home = _installed(pytestconfig, HERE / "node" / "package-lock.json", _install_packages)
    for script in (HERE / "node").glob("*.mjs"):
        shutil.copy(script, home)

    def run(script, *more):
        return _printed([BIN / "node", script, server.url, KEY, *more], home)

    return run


@pytest.fixture(scope="session")
def litellm(pytestconfig, server):
    """The same with a script of `litellm/`, in an environment of LiteLLM's own."""
    home = _installed(pytestconfig, HERE / "litellm" / "requirements.txt", _install_environment)

    def run(script):
        words = [home / "bin" / "python", HERE / "litellm" / script, server.url, KEY]
        return _printed(words, home, LITELLM_LOCAL_MODEL_COST_MAP="True")

    return run


def _installed(config, lock, install):
    """Make the folder of a lock file, once for each of its contents; kept between runs."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = config.cache.mkdir(f"clients-{lock.parent.name}-{digest}")
    if not (folder / "installed").exists():
        install(lock, folder)
        (folder / "installed").touch()
    return folder


def _install_packages(lock, folder):
    for name in ("package.json", lock.name):
        shutil.copy(lock.parent / name, folder)
    words = [BIN / "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(words, cwd=folder, check=True)


def _install_environment(lock, folder):
    venv.create(folder, with_pip=True)
    words = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "-r", lock]
    subprocess.run(words, check=True)


def _printed(words, folder, **environment):
    """What a program printed as JSON."""
    ran = subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
