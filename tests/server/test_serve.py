"""The whole of it: a server process, its worker process, real sockets, official clients."""

import asyncio
import base64
import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from mcp import Client

from tests.running import Running

FLUES_BODY = """{
  "prompt": "A futuristic city skyline at sunset",
  "width": 512,
  "height": 512,
  "steps": 4,
  "guidance_scale": 7.5
}"""


@pytest.mark.parametrize("pause_s", [0.0, 0.2], ids=["before the answer", "after it"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_chunks_that_make_no_sense_after_a_refusal_leave_no_traceback(kind, pause_s, start):
    server = start(api_keys="long-secret-of-ours")
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        time.sleep(pause_s)
        line.sendall(b"zz\r\n")
        said = line.recv(4096)
    code, _, log = server.end()

    assert said.split()[1] in (b"400", b"401")
    assert code == 0
    assert "Traceback" not in log
    assert " error " not in log


@pytest.fixture(scope="module")
def server():
    server = Running(queue_limit=2, max_n=4)
    assert server.line().startswith("ready: fake on cpu")
    yield server
    assert server.end()[0] == 0


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_api_process_never_loads_torch(client, server):
    client.images.generate(prompt="a fox")
    loaded = {Path(part.path).name for part in psutil.Process(server.process.pid).memory_maps()}

    assert any("python" in name for name in loaded)
    assert not [name for name in loaded if "torch" in name]


def test_flues_curl_works_word_for_word(server):
    curl = ["curl", "-sS", "-X", "POST", f"{server.url}/v1/images/generations"]
    words = [*curl, "-H", "Content-Type: application/json", "-d", FLUES_BODY]

    said = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)

    assert base64.b64decode(said["image"]).startswith(b"picture of A futuristic city")
    assert isinstance(said["gen_time"], float)


def test_the_official_client_draws(client):
    answer = client.images.generate(prompt="a fox", n=2, size="512x512", model="gpt-image-1")

    assert [base64.b64decode(image.b64_json)[:16] for image in answer.data] == 2 * [
        b"picture of a fox"
    ]
    assert (answer.size, answer.output_format) == ("512x512", "png")
    assert answer.data[0].model_extra["seed"] + 1 == answer.data[1].model_extra["seed"]


def test_the_official_client_lists_models(client):
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "fluxline"


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"n": 99}, openai.BadRequestError, "n"),
        ({"model": "who"}, openai.NotFoundError, "model"),
        ({"prompt": "broken"}, openai.InternalServerError, None),
        ({"prompt": "blown"}, openai.InternalServerError, None),
    ],
)
def test_the_official_client_raises_the_right_error(fields, kind, param, client):
    with pytest.raises(kind) as raised:
        client.images.generate(**{"prompt": "a fox", **fields})

    assert raised.value.param == param
    assert raised.value.code
    assert raised.value.request_id.startswith("req_")


async def count(http, **expected):
    """Wait until so many requests are running, waiting."""
    async with asyncio.timeout(60):
        while not (await http.get("/health")).json().items() >= expected.items():
            await asyncio.sleep(0.01)


async def test_a_full_queue_is_waited_for_as_told_and_leaving_frees_it(server):
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        post = "/v1/images/generations"
        waiting = {"prompt": "hang waiting"}
        hanging = [asyncio.create_task(http.post(post, json=waiting)) for _ in range(2)]
        await count(http, waiting=2)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.images.generate(prompt="a fox")

        patient = client.with_options(max_retries=5)
        began = time.monotonic()
        drawing = asyncio.create_task(patient.images.generate(prompt="a fox"))
        hanging[0].cancel()  # the connection closes: its request is cancelled
        answer = await drawing

        assert answer.data
        assert time.monotonic() - began < 25  # about 1 s on an idle machine
        hanging[1].cancel()
        await count(http, running=0, waiting=0)
    assert refused.value.response.headers["retry-after-ms"] == "1000"


@pytest.mark.slow
def test_a_poisonous_request_is_not_sent_again_by_the_official_client(start):
    server = start()
    server.line()
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(openai.InternalServerError, match="worker died 3 times"),
    ):
        client.images.generate(prompt="poison")
    restarts = httpx.get(f"{server.url}/health").json()["restarts"]

    assert restarts == 3


def test_it_answers_within_seconds_and_stops_on_a_signal(start):
    server = start()

    assert httpx.get(f"{server.url}/health/live").status_code == 200
    up_s = time.monotonic() - server.began
    code, _, err = server.end()

    assert code == 0
    assert up_s < 20  # about 1 s on an idle machine
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_runs_is_finished_or_failed_within_the_limit(number, start):
    server = start(drain_s=0.3)
    server.line()
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        post = asyncio.create_task(http.post("/v1/images/generations", json={"prompt": "hang"}))
        await count(http, running=1)
        server.process.send_signal(number)
        answer = await post

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert server.end()[0] == 0


@pytest.mark.slow
async def test_an_agent_that_stays_connected_does_not_hold_up_the_end(start):
    server = start()
    server.line()
    async with Client(f"{server.url}/mcp", mode="legacy") as client:
        result = await client.call_tool("generate_image", {"prompt": "a fox"})
        code, _, err = await asyncio.to_thread(server.end)

    assert base64.b64decode(result.content[0].data).startswith(b"picture of a fox")
    assert (code, "Traceback" in err) == (0, False)
    assert "timeout graceful shutdown exceeded" not in err  # uvicorn's, of lines still open


async def test_a_second_signal_does_not_wait(start):
    server = start(drain_s=600)
    server.line()
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        post = asyncio.create_task(http.post("/v1/images/generations", json={"prompt": "hang"}))
        await count(http, running=1)
        server.process.send_signal(signal.SIGTERM)
        assert "finishing 1 request," in await asyncio.to_thread(server.line)
        assert (await http.get("/health/ready")).status_code == 503
        server.process.send_signal(signal.SIGTERM)
        await post

    assert server.end()[0] == 0


def test_a_model_that_cannot_load_ends_it_with_2_and_the_reason(start):
    server = start(model="absent")
    server.process.wait(60)
    code, _, err = server.end()

    assert code == 2
    assert "cannot go on: no model called absent" in err


def test_a_port_that_is_taken_ends_it_with_2(start, server):
    taken = int(server.url.rsplit(":", 1)[1])
    second = start(port=taken)
    code, _, err = second.end()

    assert code == 2
    assert f"cannot listen on 127.0.0.1 port {taken}" in err


def test_its_end_tears_down_no_interpreter_under_the_threads_of_the_picture_store(start, server):
    taken = int(server.url.rsplit(":", 1)[1])
    second = start(port=taken, first="import atexit\natexit.register(print, 'torn down')\n")

    assert second.end()[:2] == (2, "")


@pytest.mark.slow
def test_listening_to_the_world_without_a_key_must_be_meant(start):
    refused = start(host="0.0.0.0")
    code, _, err = refused.end()
    meant = start(host="0.0.0.0", insecure=True)
    meant.line()

    assert (code, "fluxline keys create" in err) == (2, True)
    assert "without a key" in meant.end()[2]


@pytest.mark.slow
def test_with_keys_the_world_may_come_and_who_has_none_is_refused(start, monkeypatch):
    monkeypatch.setenv("API_KEYS", "secret,other")
    server = start(host="0.0.0.0")
    server.line()
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.images.generate(prompt="a fox")
        assert client.with_options(api_key="other").images.generate(prompt="a fox").data

    _, out, err = server.end()
    assert "secret" not in out + err


def test_nothing_but_its_port_can_be_reached(server):
    processes = [psutil.Process(server.process.pid), *server.workers]
    lines = [line for process in processes for line in process.net_connections("inet")]

    assert {line.laddr for line in lines if line.status == "LISTEN"} == {("127.0.0.1", server.port)}


async def test_an_oversized_header_is_cut(server):
    port = int(server.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 200_000)
    answer = await reader.read(64)
    writer.close()

    assert b" 400 " in answer


@pytest.mark.slow
async def test_two_replicas_share_the_work_and_one_may_die(start):
    server = start(replicas=2)
    server.line()
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    assert len(children.read_text().split()) == 2
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        first = asyncio.create_task(http.post("/v1/images/generations", json={"prompt": "poison"}))
        answers = [
            await http.post("/v1/images/generations", json={"prompt": f"fox {k}"}) for k in range(8)
        ]
        assert (await first).status_code == 500
        restarts = (await http.get("/health")).json()["restarts"]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert restarts == 3
