"""Traces from the door to the store, as a collector of OTLP hears them."""

import asyncio
import itertools
import json
import time

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fluxline import images
from fluxline.errors import ConfigError
from fluxline.images import Receipt, Recipe
from fluxline.jobs import JobStore, KeyRing
from fluxline.otel import CLOSE_S, open_tracing
from fluxline.request import GenerationRequest, ImageResult, SamplingParams
from fluxline.server.app import create_app
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.door import ImageGen
from fluxline.server.rpc.image_gen_pb2_grpc import ImageGenStub
from fluxline.server.rpc.serve import GrpcServer
from fluxline.service import Service, Terms, trace
from fluxline.tracing import is_wanted
from tests.images.pictures import photo
from tests.otlp import collecting, collecting_by_grpc, values
from tests.server.conftest import LIMITS, InlineReplica
from tests.server.dialects.test_mcp import client_of, served
from tests.service.conftest import alone

URL, JOBS = "/v1/images/generations", "/v1/jobs"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "a fox nobody may hear of"
KEY = {"authorization": "Bearer ann-and-her-long-secret"}
SERVER = 2  # a kind of span
STAGES = [("encode", []), ("denoise", []), ("decode", []), ("compress", [])]


TELL_LOADED = """
import os, sys
OTEL = ("fluxline.otel", "opentelemetry.sdk", "opentelemetry.exporter")
def told(code, end=os._exit):
    print([name for name in sys.modules if name.startswith(OTEL)], flush=True)
    end(code)
os._exit = told
"""


@pytest.fixture
def collector():
    with collecting() as collector:
        yield collector


@pytest.fixture
def tracing(collector):
    tracing = open_tracing(collector.url)
    yield tracing
    tracing.close()


@pytest.fixture
async def service(replica, database, pictures, tracing):
    service = Service(alone(replica), JobStore(database), pictures, queue_limit=64, tracing=tracing)
    await service.start()
    yield service
    await service.close()


@pytest.fixture
def app(service, links, webhooks, uploads, database, tracing):
    ring = KeyRing(database, given=[KEY["authorization"].removeprefix("Bearer "), "ann", "bob"])
    return create_app(
        service, links, webhooks, uploads, max_n=4, ring=ring, tracing=tracing, **LIMITS
    )


@pytest.fixture
async def http(app):
    transport = httpx.ASGITransport(app)
    options = {"base_url": "http://localhost", "headers": KEY}
    async with httpx.AsyncClient(transport=transport, **options) as client:
        yield client


@pytest.fixture
async def rpc(service, pictures, database, uploads, tracing):
    ring = KeyRing(database, given=["ann"])
    door = ImageGen(service, pictures, ring, uploads, is_exclusive=False)
    server = GrpcServer(door, "127.0.0.1:0", tracing)
    await server.start()
    await server.tell(is_ready=True)
    yield server
    await server.stop(0)


@pytest.fixture
async def stub(rpc):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        yield ImageGenStub(channel)


@pytest.fixture
def start(start, monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    return start


async def ended(service):
    """Nothing is drawn or waits any more, and the last job's spans have ended."""
    while service.status.waiting + service.status.running:
        await asyncio.sleep(0.002)
    await service._dispatcher.drained()
    await asyncio.sleep(0.01)


def wanted(**fields):
    good = {"prompt": SECRET, "height": 64, "width": 64, "num_inference_steps": 1}
    return pb.GenerateRequest(**{**good, "guidance_scale": 1.0, **fields})


async def test_a_request_is_one_tree_from_the_door_to_the_decode(http, service, tracing, collector):
    answer = await http.post(URL, json={"prompt": "a fox", "n": 2, "steps": 3, "sampler": "heun"})
    await ended(service)
    tracing.close()

    [door] = collector.named(f"POST {URL}")
    [job] = collector.named("job")
    assert sorted(name for name, _ in collector.tree(door.id)) == ["admit", "job"]
    parts = sorted(collector.tree(job.id))
    assert parts == [("picture", STAGES), ("picture", STAGES), ("queue", [])]
    assert {span.trace for span in collector.spans} == {door.trace}
    assert door.parent == ""
    assert (door.kind, door.is_failed) == (SERVER, False)
    assert door.values == {
        "http.request.method": "POST",
        "http.route": URL,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "fluxline.request.id": answer.headers["x-request-id"],
    }
    assert job.values["fluxline.outcome"] == "done"
    assert job.values["fluxline.images"] == 2
    assert collector.named("admit")[0].values == {"fluxline.job.id": job.values["fluxline.job.id"]}
    assert (
        collector.named("denoise")[0].values.items()
        >= {
            "fluxline.evaluations": 4,
            "fluxline.steps": 3,
            "fluxline.sampler": "heun",
            "fluxline.schedule": "simple",
            "fluxline.tokens.image": 16,
        }.items()
    )


async def test_stages_take_what_the_worker_said_and_end_when_the_picture_came(
    http, service, tracing, collector
):
    began = time.time()
    await http.post(URL, json={"prompt": "a fox"})
    await ended(service)
    tracing.close()

    [picture] = collector.named("picture")
    stages = [span for span in collector.spans if span.parent == picture.id]
    took = [(span.name, pytest.approx(span.took_s, abs=1e-5)) for span in stages]
    assert took == [("encode", 0.25), ("denoise", 0.5), ("decode", 0.25), ("compress", 7.0)]
    for before, after in itertools.pairwise(stages):
        assert before.began_ns / 1e9 + before.took_s == pytest.approx(after.began_ns / 1e9)
    assert stages[0].began_ns == picture.began_ns
    assert began <= picture.began_ns / 1e9 + 8.0 <= time.time()
    assert 8.0 <= picture.took_s + 1e-5 < 8.5
    [job], [queue] = collector.named("job"), collector.named("queue")
    assert queue.began_ns == job.began_ns
    assert queue.took_s <= job.took_s


async def test_a_job_asked_for_is_stored_in_the_trace_of_its_asking(
    http, service, tracing, collector
):
    await http.post(JOBS, json={"prompt": "a fox"})
    await ended(service)
    tracing.close()

    [door], [job] = collector.named(f"POST {JOBS}"), collector.named("job")
    [store], [picture] = collector.named("store"), collector.named("picture")
    assert job.parent == door.id
    assert store.parent == picture.id
    assert (job.values["fluxline.door"], door.values["http.response.status_code"]) == ("jobs", 202)


async def test_the_trace_of_a_caller_goes_on(http, service, tracing, collector):
    traceparent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    await http.post(URL, json={"prompt": "a fox"}, headers=traceparent)
    await ended(service)
    tracing.close()

    assert collector.named(f"POST {URL}")[0].parent == PARENT
    assert {span.trace for span in collector.spans} == {TRACE}
    assert collector.named("compress")


async def test_a_caller_who_does_not_collect_is_not_told_of(http, service, tracing, collector):
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    await http.post(URL, json={"prompt": "a fox"}, headers=unsampled)
    await ended(service)
    tracing.close()

    assert collector.spans == []


async def test_no_prompt_key_or_word_of_a_caller_is_told(http, service, stub, tracing, collector):
    body = {"prompt": SECRET, "negative_prompt": SECRET, "cfg_scale": 2.0}
    await http.post(URL, json=body)
    await http.post(JOBS, json=body, headers={"Idempotency-Key": SECRET})
    await http.post(URL, json={**body, "sampler": SECRET})
    await http.post(URL, json={**body, "model": SECRET})
    await http.post(f"/nowhere/{SECRET}", json=body)
    await http.get(f"{JOBS}/{SECRET}", params={"q": SECRET})
    await http.request("FOX", URL)
    await stub.Generate(wanted(), metadata=[("api-key", "ann")])
    await ended(service)
    tracing.close()

    told = b"".join(collector.raw)
    assert len(collector.named("job")) == 3
    for word in (SECRET.encode(), b"fox", b"FOX", b"ann-and-her-long-secret", b"ann"):
        assert word not in told


async def test_probes_are_not_told_of(http, stub, tracing, collector):
    for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/"):
        await http.get(path)
    await stub.Ping(pb.PingRequest(), metadata=[("api-key", "ann")])
    await stub.Metrics(pb.MetricsRequest(), metadata=[("api-key", "ann")])
    tracing.close()

    assert collector.spans == []


async def test_a_refusal_is_told_by_its_code(http, tracing, collector):
    await http.post(URL, json={"prompt": "a fox", "width": 9999})
    tracing.close()

    [door], [admit] = collector.named(f"POST {URL}"), collector.named("admit")
    assert (admit.is_failed, admit.values) == (True, {"error.type": "invalid_value"})
    assert (door.is_failed, door.values["http.response.status_code"]) == (False, 400)
    assert collector.named("job") == []


async def test_a_failure_of_ours_is_told_at_every_height(http, service, tracing, collector):
    await http.post(URL, json={"prompt": "blown"})
    await ended(service)
    tracing.close()

    [door], [job] = collector.named(f"POST {URL}"), collector.named("job")
    assert (door.is_failed, door.values["error.type"]) == (True, "500")
    assert (job.is_failed, job.values["error.type"]) == (True, "out_of_memory")
    assert job.values["fluxline.outcome"] == "failed"


async def test_a_job_that_is_cancelled_while_it_waits_has_waited(
    http, service, engine, tracing, collector
):
    job_id = (await http.post(JOBS, json={"prompt": "hang waiting"})).json()["id"]
    while not engine.started:
        await asyncio.sleep(0.002)
    await http.post(f"{JOBS}/{job_id}/cancel")
    await ended(service)
    tracing.close()

    [job], [queue] = collector.named("job"), collector.named("queue")
    assert (job.values["fluxline.outcome"], job.is_failed) == ("cancelled", False)
    assert queue.took_s == pytest.approx(job.took_s, abs=0.05)


async def test_a_picture_that_waits_for_another_to_be_stored_is_not_late(
    http, service, pictures, tracing, collector, monkeypatch
):
    put = pictures.put

    async def slowly(*args):
        await asyncio.sleep(0.4)
        return await put(*args)

    monkeypatch.setattr(pictures, "put", slowly)
    await http.post(JOBS, json={"prompt": "a fox", "n": 2})
    await ended(service)
    tracing.close()

    one, two = collector.named("compress")
    assert abs(one.began_ns - two.began_ns) / 1e9 < 0.3
    assert [span.took_s >= 0.4 for span in collector.named("store")] == [True, True]


class Busy(InlineReplica):
    """Takes no work, and is known to be able to."""

    ready = 0
    models = property(lambda self: self.engine.models)

    def __init__(self, engine):
        super().__init__(engine)
        self.state = "restarting"


async def test_a_job_is_in_its_trace_when_another_server_draws_it(
    replica, engine, database, pictures, tracing, collector
):
    busy = Service(
        alone(Busy(engine)), JobStore(database), pictures, queue_limit=4, tracing=tracing
    )
    await busy.start()
    with tracing.answer("door", {"traceparent": f"00-{TRACE}-{PARENT}-01"}, {}):
        asked = GenerationRequest(id="job_1", prompt="a fox", seed=7)
        async with await busy.submit(asked, Terms(is_attended=False)):
            pass
    await busy.close()
    free = Service(alone(replica), JobStore(database), pictures, queue_limit=4, tracing=tracing)
    await free.start()
    await ended(free)
    await free.close()
    tracing.close()

    [door], [job] = collector.named("door"), collector.named("job")
    assert (job.trace, job.parent) == (TRACE, door.id)
    assert collector.named("picture")[0].trace == TRACE


async def test_a_grpc_call_is_told_as_an_http_exchange_is(service, stub, tracing, collector):
    named = [("api-key", "ann"), ("traceparent", f"00-{TRACE}-{PARENT}-01")]
    await stub.Generate(wanted(), metadata=named)
    async for _ in stub.GenerateStream(wanted(), metadata=named):
        pass
    await ended(service)
    tracing.close()

    [one], [many] = (
        collector.named(f"imagegen.ImageGen/{m}") for m in ("Generate", "GenerateStream")
    )
    for door in (one, many):
        assert (door.kind, door.trace, door.parent) == (SERVER, TRACE, PARENT)
        assert sorted(name for name, _ in collector.tree(door.id)) == ["admit", "job"]
        assert door.values == {
            "rpc.system.name": "grpc",
            "rpc.method": door.name,
            "rpc.response.status_code": "OK",
        }
    assert len(collector.named("denoise")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "key", "code", "is_failed"),
    [
        ({"width": 9999}, "ann", "INVALID_ARGUMENT", False),
        ({}, "nobody", "UNAUTHENTICATED", False),
        ({"prompt": "blown"}, "ann", "INTERNAL", True),
    ],
)
async def test_a_grpc_call_that_ends_badly_is_told_by_its_code(
    stub, rpc, tracing, collector, fields, key, code, is_failed
):
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Generate(wanted(**fields), metadata=[("api-key", key)])
    await rpc.stop(5)  # the caller hears of it before the span has ended
    tracing.close()

    [door] = collector.named("imagegen.ImageGen/Generate")
    assert (door.values["rpc.response.status_code"], door.is_failed) == (code, is_failed)


async def test_a_grpc_caller_who_leaves_is_told_as_such(stub, service, engine, tracing, collector):
    call = stub.GenerateStream(wanted(prompt="hang"), metadata=[("api-key", "ann")])
    while not engine.started:
        await asyncio.sleep(0.002)
    call.cancel()
    await ended(service)
    tracing.close()

    [door] = collector.named("imagegen.ImageGen/GenerateStream")
    assert door.values["rpc.response.status_code"] == "CANCELLED"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_what_an_agent_draws_is_in_the_trace_of_its_own_call(
    app, service, tracing, collector, mode
):
    async with served(app) as address, client_of(address, "ann", mode) as client:
        for seed in (1, 2):
            await client.call_tool("generate_image", {"prompt": SECRET, "seed": seed})
    await ended(service)
    tracing.close()

    doors = {span.id for span in collector.named("POST /mcp")}
    parents = [job.parent for job in collector.named("job")]
    assert len(set(parents)) == 2
    assert set(parents) <= doors


def test_a_file_says_how_many_shared_its_batches():
    receipt = Receipt(
        weights="w",
        sigmas=(1.0, 0.0),
        dtype="float32",
        device="cpu",
        torch="2",
        threads=2,
        beside=3,
    )
    params = SamplingParams(width=64, height=64, steps=1)
    recipe = Recipe(
        prompt=SECRET, seed=1, model="mini", params=params, software="fluxline", receipt=receipt
    )
    image = ImageResult(
        index=0,
        seed=1,
        data=images.encode(photo(64), format="png", recipe=recipe),
        format="png",
        width=64,
        height=64,
        model="mini",
        params=params,
        timings_s={},
    )

    assert trace.beside(image) == 3


# ---- whole servers


def draw(server, **fields):
    body = {"prompt": SECRET, **fields}
    answer = httpx.post(f"{server.url}{URL}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.slow
def test_what_is_left_is_told_at_the_end_and_the_log_bears_its_ids(start, collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    server = start(otlp_endpoint=collector.url, log_format="json", log_level="debug")
    draw(server)
    httpx.get(f"{server.url}/health")
    assert collector.raw == []
    code, _, log = server.end()
    lines = [json.loads(line) for line in log.splitlines()]
    [told] = [line for line in lines if f"POST {URL}" in line["message"]]
    [untold] = [line for line in lines if "GET /health" in line["message"]]

    [door] = collector.named(f"POST {URL}")
    assert collector.named("compress")
    assert (told["trace_id"], told["span_id"]) == (door.trace, door.id)
    assert (code, "trace_id" in untold) == (0, False)
    assert SECRET.encode() not in b"".join(collector.raw)


@pytest.mark.slow
def test_the_standard_variables_are_enough(start, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "painter")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    server = start()
    draw(server)

    collector.wait_for(f"POST {URL}")
    collector.wait_for("job")
    assert {values(one.attributes)["service.name"] for one in collector.resources} == {"painter"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["not asked for", "forbidden"])
def test_off_nothing_is_told_and_the_sdk_not_even_loaded(start, collector, monkeypatch, how):
    if how == "forbidden":
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    server = start(first=TELL_LOADED, otlp_endpoint=collector.url if how == "forbidden" else "")
    draw(server)
    _, out, log = server.end()

    assert collector.raw == []
    assert out.splitlines()[-1] == "[]"
    warning = "no traces: OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER forbids them"
    assert (warning in log) == (how == "forbidden")


@pytest.mark.parametrize(
    "protocol", ["http/protobuf", pytest.param("grpc", marks=pytest.mark.slow)]
)
def test_a_collector_that_hangs_harms_nobody(start, monkeypatch, protocol):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    collect = collecting if protocol == "http/protobuf" else collecting_by_grpc
    with collect(answers=False) as collector:
        server = start(otlp_endpoint=collector.url)
        draw(server)
        while not collector.raw:
            time.sleep(0.02)
        began = time.monotonic()
        for _ in range(5):
            draw(server)
        drawn = time.monotonic()
        code, _, log = server.end()
        stopped = time.monotonic()

    assert drawn - began < 9  # who waited for the collector would take 10
    assert stopped - drawn < CLOSE_S + 4
    assert (code, "Traceback" in log) == (0, False)
    assert "the collector of traces does not answer; the last spans are lost" in log


@pytest.mark.slow
def test_a_collector_that_is_away_harms_nobody_and_is_complained_of_seldom(start, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    server = start(otlp_endpoint="http://127.0.0.1:9")
    for _ in range(4):
        draw(server)
        time.sleep(0.3)
    began = time.monotonic()
    code, _, log = server.end()

    assert time.monotonic() - began < CLOSE_S + 4
    assert (code, "Traceback" in log) == (0, False)
    assert 1 <= sum("opentelemetry" in line for line in log.splitlines()) <= 2, log


LACKING = "import sys\nsys.modules['opentelemetry.sdk'] = None\n"


@pytest.mark.slow
def test_an_endpoint_without_the_extra_is_refused_by_name(start):
    server = start(first=LACKING, otlp_endpoint="http://127.0.0.1:4318")
    code, _, log = server.end()

    assert code == 2
    assert "OpenTelemetry is not installed: pip install 'fluxline[otel]'" in log


@pytest.mark.slow
def test_a_variable_without_the_extra_is_warned_of(start, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    server = start(first=LACKING)
    draw(server)
    code, _, log = server.end()

    assert code == 0
    assert "no traces, though an OTEL_* variable asks for them" in log


# ---- what is asked of OpenTelemetry


@pytest.mark.parametrize(
    ("given", "endpoint", "expected"),
    [
        ({}, "", False),
        ({}, "http://here:4318", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://here:4318"}, "", True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://here:4318/v1/traces"}, "", True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "", True),
        ({"OTEL_TRACES_EXPORTER": "none"}, "http://here:4318", False),
        ({"OTEL_SDK_DISABLED": "True"}, "http://here:4318", False),
        ({"OTEL_SERVICE_NAME": "painter"}, "", False),
    ],
)
def test_who_asks_for_traces_and_who_forbids_them(monkeypatch, given, endpoint, expected):
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    assert is_wanted(endpoint) == expected


def told(tracing):
    with tracing.answer("door", {}, {}):
        pass
    tracing.close()


def test_grpc_can_carry_it(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with collecting_by_grpc() as collector:
        told(open_tracing(collector.url))

    assert [span.name for span in collector.spans] == ["door"]


def test_its_name_is_ours_unless_somebody_says_another(collector, monkeypatch):
    told(open_tracing(collector.url))
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=painter,host.name=here")
    told(open_tracing(collector.url))

    names = [values(one.attributes)["service.name"] for one in collector.resources]
    assert names == ["fluxline", "painter"]


def test_the_sampler_is_heard(collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    told(open_tracing(collector.url))

    assert collector.spans == []


@pytest.mark.parametrize(
    ("given", "endpoint", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "", "must be otlp or none; got console"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "", "must be http/protobuf or grpc; got"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
            "",
            "an OTEL_\\* variable cannot be read",
        ),
        ({}, "localhost:4318", "otlp_endpoint must begin with http:// or https://"),
    ],
)
def test_what_cannot_be_meant_is_refused(monkeypatch, given, endpoint, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=message):
        open_tracing(endpoint)
