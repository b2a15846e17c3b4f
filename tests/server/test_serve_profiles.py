"""A real server of two profiles: loaded, killed, idle, on ports of their own.

Of an engine without a model, and of the embedded model.
"""

import base64
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from fluxline.fleet.process import ENGINE
from fluxline.images import decode
from tests.running import FAKE

FILE = """
[profiles.one]
fallback = "two"
[profiles.two]
device = "auto"  # by which its worker is told from the other's
load = "lazy"
idle_unload_s = 1.0
"""


@pytest.fixture(params=[FAKE, pytest.param(ENGINE, marks=pytest.mark.slow)], ids=["fake", "mini"])
def server(request, start, tmp_path):
    """Serve profile one on a further port, and two on another; they have one model."""
    (tmp_path / "profiles.toml").write_text(FILE)
    ports = [_free_port() for _ in range(2)]
    running = start(
        engine=request.param,
        model="mini",
        device="cpu",
        data=str(tmp_path / "data"),
        config=str(tmp_path / "profiles.toml"),
        listen=f"{ports[0]}=one,{ports[1]}=two",
    )
    running.ports = ports
    said = {running.line(), running.line()}
    assert "ready: two is loaded when it is asked for\n" in said
    assert any(line.startswith("ready: one, ") for line in said)
    return running


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def drawn(url, **body):
    body = {"prompt": "a red fox", "size": "64x64", "steps": 1, "seed": 3, **body}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=110)
    assert answer.status_code == 200, answer.text
    return answer.json()


def states(url):
    return httpx.get(f"{url}/health/ready", timeout=10).json()["profiles"]


def wait_for(truth):
    until = time.monotonic() + 90
    while not truth():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


def test_a_lazy_profile_is_loaded_once_for_all_and_gives_its_memory_back(server):
    [eager] = server.workers
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: drawn(server.url, profile="two"), range(4)))
    assert {said["profile"] for said in answers} == {"two"}
    files = {base64.b64decode(said["image"]) for said in answers}
    if len(files) > 1:  # of other company in their forwards: a level of 255
        first, *others = (decode(file).astype(int) for file in files)
        assert all(abs(first - other).max() <= 1 for other in others)
    assert server.log.count("profile two is being loaded") == 1
    held = [worker for worker in server.workers if worker.pid != eager.pid]
    assert len(held) == 1

    wait_for(lambda: not psutil.pid_exists(held[0].pid))

    assert states(server.url) == {"one": "ready", "two": "unloaded"}
    assert drawn(server.url, profile="two")["profile"] == "two"  # and it comes again
    assert eager.is_running()


def test_another_profile_draws_while_one_is_down_and_the_answer_says_so(server):
    assert not any("down" in line for line in drawn(server.url)["warnings"])
    for _ in range(8):  # each death keeps one away for longer
        [eager] = [one for one in server.workers if "--device=cpu" in one.cmdline()]
        eager.send_signal(signal.SIGKILL)
        wait_for(lambda: states(server.url)["one"] == "restarting")
        if (said := drawn(server.url))["profile"] == "two":
            break
        wait_for(lambda: states(server.url)["one"] == "ready")

    assert said["profile"] == "two"
    assert said["warnings"][0] == "profile one is down: drawn with two"
    wait_for(lambda: states(server.url)["one"] == "ready")
    assert drawn(server.url)["profile"] == "one"


def test_each_port_has_its_profile_and_all_paths(server):
    one, two = (f"http://127.0.0.1:{port}" for port in server.ports)

    assert [drawn(url)["profile"] for url in (server.url, one, two)] == ["one", "one", "two"]
    assert drawn(two, profile="one")["profile"] == "one"
    assert httpx.get(f"{two}/metrics").json()["worker_alive"] is True
    code, _, _ = server.end()
    assert code == 0


def test_a_lora_that_a_profile_lacks_is_said_at_the_start(start, tmp_path):
    (tmp_path / "profiles.toml").write_text("[profiles.one]\nloras = { imk = 0.5 }\n")
    running = start(
        engine=FAKE,
        model="mini",
        device="cpu",
        data=str(tmp_path / "data"),
        config=str(tmp_path / "profiles.toml"),
    )
    running.line()
    assert "profile one: no LoRA 'imk' here; the folder of LoRAs is empty" in running.log
