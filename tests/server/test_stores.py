"""A server on PostgreSQL and S3, both real: links that download, death, stores that are away."""

import json
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import psutil
import pytest

from tests.seaweed import KEYS

pytestmark = pytest.mark.slow

PATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
WITH_A_FAKE_ENGINE = """
import json, sys
from fluxline.server.serve import run
from fluxline.settings import load_settings
settings = load_settings({"port": 0, "model": "fake", **json.loads(sys.argv[1])})
run(settings, engine="tests.worker.fake_engine:open_engine")
"""
SMALL = {"prompt": "a red fox", "steps": 2, "size": "256x256"}
LARGE = {"prompt": "a red fox", "n": 2, "seed": 2**63 - 9, "steps": 40, "size": "256x256"}


class Served:
    """A server in a process of its own."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **KEYS, "API_KEYS": "secret", "PYTHONPATH": PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.http = httpx.Client(headers={"authorization": "Bearer secret"}, timeout=60)

    def ready(self):
        """Wait until it is."""
        self.http.base_url = self.said(r"listens on (http://\S+)")[1]
        self.said("ready: ")
        return self

    def said(self, pattern):
        log = ""
        for line in self.process.stdout:
            log += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(log)

    def kill(self):
        self.process.kill()
        if not self.process.stdout.closed:
            self.process.communicate()
        self.http.close()


@pytest.fixture
def options(postgres, seaweed):
    with postgres.database() as database:
        yield {"database": database, "storage": seaweed.url(uuid.uuid4().hex)}


@pytest.fixture
def begin():
    running = []

    def begin(*words):
        running.append(Served(*words))
        return running[-1]

    yield begin
    for server in running:
        server.kill()


@pytest.fixture
def fake(begin, options):
    return lambda **others: begin("-c", WITH_A_FAKE_ENGINE, json.dumps({**options, **others}))


def ended(server, where):
    until = time.monotonic() + 120
    while (job := server.http.get(where).json())["status"] in ("queued", "running"):
        assert time.monotonic() < until, job
        time.sleep(0.2)
    return job


@pytest.mark.timeout(600)  # it loads the embedded model twice
def test_a_link_downloads_without_a_key_and_a_job_outlives_kill_9_of_its_server(
    begin, options, seaweed
):
    words = ["-m", "fluxline", "serve", "--port", "0"]
    words += [f"--{name}={value}" for name, value in options.items()]
    first = begin(*words).ready()
    asked = {**SMALL, "response_format": "url"}
    (picture,) = first.http.post("/v1/images/generations", json=asked).json()["data"]
    answer = httpx.get(picture["url"])
    assert picture["url"].startswith(seaweed.endpoint)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG")

    where = first.http.post("/v1/jobs", json=LARGE).headers["location"]
    while first.http.get(where).json()["status"] == "queued":
        time.sleep(0.02)
    workers = psutil.Process(first.process.pid).children(recursive=True)
    first.kill()
    job = ended(begin(*words).ready(), where)
    assert job["status"] == "done"
    assert [image["seed"] for image in job["images"]] == [LARGE["seed"], LARGE["seed"] + 1]
    assert all(httpx.get(image["url"]).content.startswith(b"\x89PNG") for image in job["images"])
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_while_the_database_is_down_it_says_when_to_come_again_and_then_it_draws(fake, postgres):
    server = fake().ready()
    held = server.http.post("/v1/jobs", json=SMALL).headers["location"]
    assert ended(server, held)["status"] == "done"
    postgres.stop()
    try:
        answer = server.http.post("/v1/images/generations", json=SMALL)
        until = time.monotonic() + 20
        while (ready := server.http.get("/health/ready", headers={"authorization": ""})).is_success:
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        postgres.start()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "database_unavailable"
    assert "job database cannot be read now" in answer.json()["error"]["message"]
    assert ready.json()["reason"] == "the job database does not answer"
    assert server.http.post("/v1/images/generations", json=SMALL).status_code == 200
    assert server.http.get(held).json()["status"] == "done"


def test_a_store_that_is_away_at_the_start_is_waited_for(fake, seaweed):
    seaweed.kill()
    try:
        server = fake().ready()
        where = server.http.post("/v1/jobs", json=SMALL).headers["location"]
        time.sleep(1)
        assert server.http.get(where).json()["status"] in ("queued", "running")
    finally:
        seaweed.start()
    job = ended(server, where)
    assert job["status"] == "done"
    assert httpx.get(job["images"][0]["url"]).content.startswith(b"picture of a red fox")


def test_a_bucket_that_is_not_there_ends_it_at_the_start(fake, seaweed):
    server = fake(storage=seaweed.url("", "absent"))
    out, _ = server.process.communicate(timeout=60)
    assert (server.process.returncode, "NoSuchBucket" in out) == (2, True)
    assert "Traceback" not in out
