"""Servers of one data folder, a ledger, and how much of a server is in use."""

import os
from dataclasses import dataclass

import httpx
import psutil
import pytest

from tests.faults.ledger import Ledger
from tests.running import Running

SCALE = float(os.environ.get("FAULTS_SCALE", "1"))
"""1 is what CI can bear; `make faults` takes more of everything that is counted."""
PACED = "tests.faults.paced_engine:open_engine"
CANARY = "quetzalcoatlus"
"""A word of every prompt. No log may hold it."""


def scaled(count: int) -> int:
    return round(count * SCALE)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def start(data):
    """Start a server on the test's data folder; again after its death, if the test likes.

    evaluation_s: of the engine, which takes four of them for a picture.
    """
    running = []

    def begin(evaluation_s=0.005, *, engine=PACED, **options):
        options = {"model": str(evaluation_s), "log_level": "debug", "data": str(data), **options}
        running.append(Running(engine=engine, **options))
        assert running[-1].line().startswith("ready")
        return running[-1]

    yield begin
    for server in running:
        workers = server.workers if server.process.poll() is None else []
        server.kill()
        for worker in workers:
            worker.kill()
        assert CANARY not in server.log
        assert "Traceback" not in server.log


@pytest.fixture
def client():
    """Make a client of a server, with as many lines as it likes."""

    def make(server, **options):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        return httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, **options)

    return make


@dataclass(frozen=True, slots=True)
class Footprint:
    """How much of the machine a server process holds."""

    files: int
    threads: int
    children: int
    rss_mib: float

    @classmethod
    def of(cls, server: Running) -> "Footprint":
        process = psutil.Process(server.process.pid)
        return cls(
            files=process.num_fds(),
            threads=process.num_threads(),
            children=len(process.children(recursive=True)),
            rss_mib=process.memory_info().rss / 2**20,
        )
