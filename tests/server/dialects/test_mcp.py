"""MCP with the official client over real sockets, in both ages of the protocol."""

import asyncio
import base64
import contextlib
import json
from dataclasses import replace

import httpx2
import pytest
import uvicorn
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from safetensors.torch import save_file
from starlette.responses import Response

from fluxline.errors import QueueFull
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.images import encode
from fluxline.jobs import JobStore, KeyRing
from fluxline.profiles import Profile
from fluxline.request import LoraRef
from fluxline.server.app import create_app
from fluxline.server.dialects import mcp as dialect
from fluxline.server.dialects.mcp_routes import McpDoor
from fluxline.server.middleware import Exchange
from fluxline.service import Service, register
from fluxline.service.record import result_of
from tests.images.pictures import noise
from tests.lora_files import random_lora
from tests.server.conftest import LIMITS
from tests.worker.fake_engine import INFO, picture

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
INITIALIZE = {
    **CALL,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "by hand", "version": "1"},
    },
}
BOTH = {"accept": "application/json, text/event-stream"}
ANN = {**BOTH, "authorization": "Bearer ann"}


@pytest.fixture
def app(service, links, webhooks, uploads, database):
    ring = KeyRing(database, given=["ann", "bob"])
    return create_app(service, links, webhooks, uploads, max_n=4, **LIMITS, ring=ring)


@contextlib.asynccontextmanager
async def served(app):
    """Serve on a free port of this machine; yield its address."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, http="h11")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    async with app.router.lifespan_context(app):
        await server.startup()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    await asyncio.wait_for(server.shutdown(), 10)  # it waits for open lines without end


@pytest.fixture
async def address(app):
    async with served(app) as address:
        yield address


def web(**options):
    """An HTTP client that loads no certificates, which takes long and is of no use here."""
    return httpx2.AsyncClient(verify=False, timeout=40, **options)


@contextlib.asynccontextmanager
async def client_of(address, key, mode="auto"):
    """The official client with a key."""
    async with web(headers={"authorization": f"Bearer {key}"}) as http:
        transport = streamable_http_client(f"{address}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


both = pytest.mark.parametrize("mode", ["legacy", "auto"], ids=["with sessions", "without"])
"""Ages of the protocol. What only translates is tested in the newer."""


@pytest.fixture
def mode():
    return "auto"


@pytest.fixture
async def client(address, mode):
    opened, left = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def keep():  # begun and ended by one task, as it must be; a fixture is not
        async with client_of(address, "ann", mode) as client:
            opened.set_result(client)
            await left.wait()

    keeping = asyncio.create_task(keep())
    await asyncio.wait({keeping, opened}, return_when=asyncio.FIRST_COMPLETED)
    if keeping.done():
        await keeping  # raises why it could not begin
    yield opened.result()
    left.set()
    await keeping


async def draw(client, **fields):
    return await client.call_tool("generate_image", {"prompt": "a fox", **fields})


async def until(truth):
    async with asyncio.timeout(20):
        while not truth():
            await asyncio.sleep(0.002)


def text(result):
    return result.content[-1].text


@both
async def test_the_tools_are_listed_with_what_they_take(client, mode):
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}

    assert set(tools) == {"generate_image", "list_models", "get_job", "cancel_job"}
    assert tools["generate_image"].input_schema["required"] == ["prompt"]
    assert tools["generate_image"].input_schema["properties"]["n"]["maximum"] == 4
    assert tools["get_job"].annotations.read_only_hint
    assert client.server_info.name == "fluxline"
    assert (client.protocol_version < "2026") == (mode == "legacy")


@both
async def test_pictures_come_with_what_they_need_to_be_drawn_again(client, engine, address):
    engine.models = (replace(INFO, backend="diffusers"),)
    result = await draw(client, n=2, seed=7, size="64x32", guidance=3.5, steps=3)

    [asked] = engine.started
    told = result.structured_content
    assert not result.is_error
    assert [base64.b64decode(block.data) for block in result.content[:2]] == [
        picture(asked, 0),
        picture(asked, 1),
    ]
    assert {block.mime_type for block in result.content[:2]} == {"image/webp"}
    assert json.loads(text(result)) == told
    assert (told["id"], told["status"], told["warnings"]) == (asked.id, "done", [])
    first = told["images"][0]
    assert (first["seed"], first["width"], first["height"], first["model"]) == (7, 64, 32, "fake")
    assert first["backend"] == "diffusers"
    assert first["warnings"] == ["guidance has no effect"]
    assert asked.params.steps == 3
    async with web() as http:
        assert (await http.get(told["images"][1]["url"])).content == picture(asked, 1)


async def test_every_field_of_the_schema_is_read(client, engine):
    [tool] = [t for t in (await client.list_tools()).tools if t.name == "generate_image"]
    made_up = {
        "string": lambda field: field.get("enum", ["a fox"])[0],
        "integer": lambda field: 1,
        "number": lambda field: 1.0,
        "boolean": lambda field: True,
        "array": lambda field: [0, 0, 8, 0],
    }
    file = base64.b64encode(encode(noise(8, 8), format="png")).decode()
    engine.models = (replace(INFO, references=1, ranks=2, approximations=("piflux",)),)
    fields = {
        name: made_up[field["type"]](field)
        for name, field in tool.input_schema["properties"].items()
    }
    fields |= {"size": "64x64", "model": "fake", "deadline_s": 60, "strength": 0.5}
    fields |= {"parallel": "piflux,sync=1"}
    fields |= {"image": file, "mask": file, "ref_images": [file], "loras": []}
    result = await draw(client, **fields)

    assert not result.is_error, text(result)


@pytest.fixture
def ink(lora_folder):
    """A LoRA of that name."""
    save_file(random_lora({"a": (8, 8)}), lora_folder / "ink.safetensors")


@pytest.mark.parametrize(
    ("given", "loras"),
    [
        ({}, (LoraRef("oil"),)),
        ({"loras": []}, ()),
        ({"loras": [{"name": "ink"}]}, (LoraRef("ink"),)),
        ({"loras": [{"name": "ink", "strength": 0.5}]}, (LoraRef("ink", 0.5),)),
    ],
)
async def test_loras_of_a_call_reach_its_picture(
    client, engine, service, lora_folder, ink, given, loras
):
    save_file(random_lora({"a": (8, 8)}, seed=1), lora_folder / "oil.safetensors")
    await service.loras.apply(LoraRef("oil"))
    await draw(client, **given)

    assert [one.params.loras for one in engine.started[0].pictures()] == [loras]


async def test_a_lora_that_is_not_there_is_named_with_one_that_is(client, engine, ink):
    result = await draw(client, loras=[{"name": "imk"}])

    assert result.is_error
    assert "did you mean ink?" in text(result)
    assert result.structured_content["error"]["param"] == "loras"
    assert engine.started == []


async def test_what_was_ignored_is_said(client):
    result = await draw(client, colour="red", output_format="png", output_compression=3)

    assert result.structured_content["warnings"] == [
        "output_compression has no effect on png",
        "unknown field 'colour' is ignored",
    ]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"prompt": None}, "prompt", "prompt is required"),
        ({"n": 5}, "n", "n must be an integer from 1 to 4; got 5"),
        ({"size": "large"}, "size", "size must be WIDTHxHEIGHT"),
        ({"size": "9999x64"}, "size", "size: width must be a whole number from 1 to 512"),
        ({"guidance": "much"}, "guidance", "guidance must be a number"),
        ({"num_inference_steps": 0}, "num_inference_steps", "num_inference_steps must be"),
        ({"wait": "no"}, "wait", "wait must be true or false"),
        ({"seed": 2**70}, "seed", "seed must be an integer"),
        ({"model": "who"}, "model", "model 'who' is not served here"),
        ({"mask": "x"}, "mask", "mask needs the image"),
        ({"colour": "red", "strict": True}, "colour", "unknown field 'colour'"),
        ({"prompt": "x" * 32_001}, "prompt", "at most 32000 characters"),
    ],
)
async def test_a_wrong_field_is_an_error_an_agent_can_read(fields, field, words, client, engine):
    result = await draw(client, **fields)

    assert result.is_error
    assert words in text(result)
    assert result.structured_content["error"]["param"] == field
    assert engine.started == []


@pytest.mark.parametrize(("prompt", "words"), [("blown", "no memory"), ("broken", "internal")])
async def test_a_failure_is_told_with_a_number_and_nothing_else(prompt, words, client):
    result = await draw(client, prompt=prompt)

    assert result.is_error
    assert words in text(result)
    assert "(request req_" in text(result)


@both
async def test_what_nobody_expected_is_told_the_same_way(client, service, caplog):
    service._admitted = lambda request: 1 / 0
    result = await draw(client)

    assert (result.is_error, "internal error (request req_" in text(result)) == (True, True)
    assert "division" not in text(result)
    assert any(record.exc_info for record in caplog.records)


async def test_a_full_queue_says_when_to_come_again(client, engine):
    def full(request, publish):
        raise QueueFull("full", retry_after_s=2.5)

    engine.start = full

    assert text(await draw(client)) == "full; try again in 3 s"


@both
async def test_an_unknown_tool_is_refused(client):
    with pytest.raises(MCPError, match="no tool 'paint'; there are generate_image"):
        await client.call_tool("paint", {})


@both
async def test_progress_grows_over_all_pictures(client):
    told = []

    async def note(progress, total, message):
        told.append((progress, total))

    await client.call_tool("generate_image", {"prompt": "a fox", "n": 2}, progress_callback=note)
    done = [progress for progress, _ in told]

    assert (done[0], told[-1]) == (0, (8, 8))
    assert done == sorted(set(done))


@both
async def test_who_cancels_a_call_is_not_drawn_for(client, engine):
    call = asyncio.create_task(draw(client, prompt="hang"))
    await until(lambda: engine.started)
    call.cancel()
    await until(lambda: engine.cancelled)

    assert engine.cancelled == [engine.started[0].id]
    assert not (await draw(client)).is_error  # the line is good for more


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
async def test_who_hangs_up_is_not_drawn_for(version, address, engine):
    async with web() as http:
        asking = await asked_by_hand(http, address, version, prompt="hang")
        await until(lambda: engine.started)
        asking.cancel()  # the connection closes
        await until(lambda: engine.cancelled)

    assert engine.cancelled == [engine.started[0].id]


async def asked_by_hand(http, address, version, **fields):
    """Call generate_image without the official client; give the call that is under way."""
    params = {"name": "generate_image", "arguments": fields, "_meta": meta(version)}
    more = {"mcp-method": "tools/call", "mcp-name": "generate_image"}
    if version < "2026":
        more = {"mcp-session-id": await begun(address, ANN)}
    headers = {**ANN, **more, "mcp-protocol-version": version}
    message = {**CALL, "method": "tools/call", "params": params}
    return asyncio.create_task(http.post(f"{address}/mcp", json=message, headers=headers))


def meta(version):
    return {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {},
    }


async def begun(address, headers):
    """Begin a session by hand; give its name."""
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    async with web(base_url=address, headers=headers) as http:
        answer = await http.post("/mcp", json=INITIALIZE)
        assert answer.status_code == 200
        session = answer.headers["mcp-session-id"]
        await http.post("/mcp", json=ready, headers={"mcp-session-id": session})
    return session


async def test_models_are_listed(client):
    [info] = (await client.call_tool("list_models", {})).structured_content["models"]

    assert (info["name"], info["steps"], info["size"]["most"]) == (
        "fake",
        {"default": 4, "most": 50},
        [512, 512],
    )


async def test_a_lazy_model_is_listed_as_it_is_and_not_loaded(
    replica, database, pictures, links, webhooks, uploads
):
    begun = []
    lazy = OnDemand(
        Profile(name="slow", model="fake", load="lazy"), lambda: begun.append(1) or replica
    )
    service = Service(Router([lazy]), JobStore(database), pictures, queue_limit=4)
    await service.start()
    ring = KeyRing(database, given=["ann"])
    app = create_app(service, links, webhooks, uploads, max_n=4, **LIMITS, ring=ring)
    async with served(app) as address, client_of(address, "ann") as client:
        [before] = (await client.call_tool("list_models", {})).structured_content["models"]
        assert begun == []
        await draw(client)
        [after] = (await client.call_tool("list_models", {})).structured_content["models"]
    await service.close()

    told = {"name": "slow", "model": "fake", "state": "unloaded"}
    assert before == {**told, "reason": "the model is not loaded"}
    assert (after["state"], after["steps"]) == ("ready", {"default": 4, "most": 50})


@both
async def test_a_job_is_asked_now_and_fetched_later(client, engine):
    said = (await draw(client, prompt="hang", wait=False)).structured_content
    await until(lambda: engine.started)
    running = (await client.call_tool("get_job", {"job_id": said["id"]})).structured_content
    engine.release()
    async with asyncio.timeout(20):
        while (job := await client.call_tool("get_job", {"job_id": said["id"]})).structured_content[
            "status"
        ] != "done":
            await asyncio.sleep(0.005)

    [asked] = engine.started
    assert (said["status"], running["status"]) == ("queued", "running")
    assert base64.b64decode(job.content[0].data) == picture(asked, 0)
    assert job.structured_content["images"][0]["seed"] == asked.seed


async def test_a_job_is_cancelled(client, engine):
    said = (await draw(client, prompt="hang", wait=False)).structured_content
    await until(lambda: engine.started)
    await client.call_tool("cancel_job", {"job_id": said["id"]})
    await until(lambda: engine.cancelled)

    assert engine.cancelled == [said["id"]]


async def test_a_failed_job_says_why(client):
    said = (await draw(client, prompt="blown", wait=False)).structured_content
    async with asyncio.timeout(20):
        while (
            job := (await client.call_tool("get_job", {"job_id": said["id"]})).structured_content
        )["status"] != "failed":
            await asyncio.sleep(0.005)

    assert job["error"]["code"] == "out_of_memory"


async def test_pictures_that_are_not_kept_any_more_are_said_to_be_gone(
    client, service, pictures, monkeypatch
):
    monkeypatch.setattr(register, "LINGER_S", 0)
    said = (await draw(client)).structured_content
    for drawn in result_of((await service.job(said["id"])).result):
        await pictures.delete(drawn.key)
    job = (await client.call_tool("get_job", {"job_id": said["id"]})).structured_content

    assert job["status"] == "done"
    assert job["warnings"] == ["the pictures of this job are not kept any more"]


async def test_pictures_too_large_for_a_conversation_are_linked(client, monkeypatch):
    monkeypatch.setattr(dialect, "ANSWER_BYTES", 14_000)
    result = await draw(client, n=4, prompt="x" * 3_000)

    shown = [block for block in result.content if block.type == "image"]
    assert 1 <= len(shown) < 4
    assert len(result.structured_content["images"]) == 4
    hidden = 4 - len(shown)
    assert result.structured_content["warnings"] == [
        f"{hidden} of 4 pictures are too large to be shown here: follow their url"
    ]


@pytest.mark.parametrize("tool", ["get_job", "cancel_job"])
async def test_jobs_of_others_are_not_there(tool, client, address, engine):
    said = (await draw(client)).structured_content
    async with client_of(address, "bob") as bob:
        others = await bob.call_tool(tool, {"job_id": said["id"]})
        nobodys = await bob.call_tool(tool, {"job_id": "job_nobody"})
    mine = await client.call_tool(tool, {"job_id": said["id"]})

    assert others.is_error
    assert text(others) == f"job_id: there is no job {said['id']!r}"
    assert text(nobodys) == "job_id: there is no job 'job_nobody'"
    assert mine.structured_content["status"] == "done"


async def test_a_key_with_all_its_sessions_open_locks_out_nobody_else(address, monkeypatch):
    monkeypatch.setattr(dialect, "MOST_SESSIONS", 2)
    bob = {**BOTH, "authorization": "Bearer bob"}
    for _ in range(2):
        await begun(address, ANN)
    async with web() as http:
        refused = await http.post(f"{address}/mcp", json=INITIALIZE, headers=ANN)

    assert refused.status_code == 503
    assert await begun(address, bob)


async def test_a_session_is_of_the_key_that_began_it(address):
    session = {"mcp-session-id": await begun(address, ANN)}
    bob = {**BOTH, "authorization": "Bearer bob"}
    async with web(base_url=address) as http:
        mine = await http.post("/mcp", json=CALL, headers={**ANN, **session})
        others = await http.post("/mcp", json=CALL, headers={**bob, **session})
        ended = await http.delete("/mcp", headers={**bob, **session})

    assert (mine.status_code, others.status_code, ended.status_code) == (200, 404, 404)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_without_a_good_key_nobody_comes_in(method, headers, address):
    async with web(base_url=address) as http:
        answer = await http.request(method, "/mcp", headers={**BOTH, **headers})

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("how", ["announced", "chunked"])
async def test_a_body_too_long_is_refused(how, address):
    async def chunks():
        for _ in range(5):
            yield b" " * 100_000

    content = b" " * 500_000 if how == "announced" else chunks()
    headers = {**ANN, "content-type": "application/json"}
    async with web(base_url=address) as http:
        answer = await http.post("/mcp", content=content, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 30_000])
@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
async def test_a_body_that_is_no_message_is_refused(raw, version, address):
    headers = {**ANN, "content-type": "application/json", "mcp-protocol-version": version}
    async with web(base_url=address) as http:
        answer = await http.post("/mcp", content=raw, headers=headers)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] < 0


# ---- pages of strangers


@pytest.fixture
async def open_http(service, links, webhooks, uploads):
    """A server that asks for no key, and what may be called there."""
    links.base_url = "https://draw.example.org"
    app = create_app(service, links, webhooks, uploads, max_n=4, **LIMITS)
    async with (
        app.router.lifespan_context(app),
        web(
            transport=httpx2.ASGITransport(app), base_url="http://localhost:8080", headers=BOTH
        ) as http,
    ):
        yield http


async def call(http, **headers):
    more = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list"}
    message = {**CALL, "params": {"_meta": meta("2026-07-28")}}
    return await http.post("/mcp", json=message, headers={**more, **headers})


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example:8080",
        "http://draw.example.org.evil.example",
        "http://draw.example.org",  # not https
        "http://192.168.1.9",
        "null",
        "",
        "http://[",
    ],
)
async def test_a_page_of_a_stranger_is_refused(origin, open_http, engine):
    answer = await call(open_http, origin=origin)

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example"])
async def test_a_name_that_a_stranger_pointed_here_is_refused(host, open_http):
    answer = await call(open_http, host=host)

    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "foreign_host")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8080"},
        {"host": "127.0.0.1"},
        {"host": "[::1]:8080"},
        {"host": "192.168.1.5:8080"},
        {"host": "draw.example.org"},
        {"origin": "http://localhost:6274"},
        {"origin": "http://[::1]:6274"},
        {"origin": "https://draw.example.org"},
    ],
)
async def test_neighbours_come_in(headers, open_http):
    answer = await call(open_http, **headers)

    assert (answer.status_code, "generate_image" in answer.text) == (200, True)


async def test_with_keys_any_name_is_good_and_a_page_of_a_stranger_is_not(address):
    async with web(base_url=address, headers=ANN) as http:
        named = await call(http, host="gpu-box:8080")
        paged = await call(http, origin="http://evil.example")

    assert (named.status_code, paged.status_code) == (200, 403)


# ---- opening and closing


async def test_a_line_left_open_does_not_hold_up_the_end(app):
    async with web(headers=ANN) as http:
        async with served(app) as address:
            session = {"mcp-session-id": await begun(address, ANN)}
            asked = http.build_request("GET", f"{address}/mcp", headers=session)
            line = await http.send(asked, stream=True)
            assert line.status_code == 200
        assert line.is_closed or not [part async for part in line.aiter_raw()]


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
async def test_the_last_answers_leave_before_the_end_and_nobody_comes_in_after(
    version, app, service, engine
):
    async def come_late():
        await asyncio.sleep(0.05)
        late = await http.post(f"{address}/mcp", json=CALL, headers=ANN)
        engine.release()
        return late

    async with web() as http:
        async with served(app) as address:
            asking = await asked_by_hand(http, address, version, prompt="hang")
            await until(lambda: engine.started)
            coming = asyncio.create_task(come_late())
        answer, late = await asyncio.gather(asking, coming)

    assert "/files/" in answer.text
    assert (late.status_code, late.json()["error"]["code"]) == (503, "model_loading")


@pytest.mark.parametrize(("is_answered", "status"), [(True, 202), (False, 500)])
async def test_what_breaks_after_an_answer_is_not_told_twice(is_answered, status):
    class Breaking:
        @contextlib.asynccontextmanager
        async def run(self):
            yield

        async def handle(self, scope, receive, send):
            for _ in range(2 * is_answered):
                await Response(status_code=202)(scope, receive, send)
            raise RuntimeError("the session is gone")

    door = McpDoor(Breaking)
    async with web(transport=httpx2.ASGITransport(Exchange(door)), base_url="http://a") as client:
        answer = await client.post("/mcp", json=CALL)
    await door.close()

    assert answer.status_code == status


async def test_what_is_not_installed_says_how_to():
    def load():
        raise ImportError("no such package")

    door = McpDoor(load)
    transport = httpx2.ASGITransport(door)
    async with web(transport=transport, base_url="http://a") as client:
        answers = [await client.post("/mcp", json=CALL) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [501, 501]
    assert "pip install 'fluxline[mcp]'" in answers[0].json()["error"]["message"]


async def test_the_door_is_told_among_the_protocols(open_http):
    told = (await open_http.get("/v1/capabilities")).json()

    assert "mcp" in told["protocols"]
