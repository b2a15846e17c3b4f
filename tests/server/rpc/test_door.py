"""gRPC: the seven tests of the server before us, and what is ours."""

import asyncio
import gc
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import save_file

from fluxline.approximation import Approximation
from fluxline.images import decode, decode_mask, encode, encode_mask
from fluxline.jobs import KeyRing
from fluxline.request import LoraRef
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.door import ImageGen
from fluxline.server.rpc.image_gen_pb2_grpc import ImageGenStub
from fluxline.server.rpc.serve import GrpcServer, KeyFirst
from fluxline.settings import Settings
from tests.images.pictures import noise, ramp
from tests.lora_files import random_lora
from tests.worker.fake_engine import INFO, picture

ROOT = Path(__file__).parents[3]
ONE, TWO = [("api-key", "client1")], [("api-key", "client2")]
GOOD = {
    "prompt": "a fox",
    "height": 64,
    "width": 64,
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
}
MOST_BYTES = Settings.model_fields["upload_limit_bytes"].default
PIXEL = encode(noise(1, 1), format="png")
Code = grpc.StatusCode


@pytest.fixture(params=[True])
def is_exclusive(request):
    return request.param


@pytest.fixture
def door(service, pictures, database, uploads, is_exclusive):
    ring = KeyRing(database, given=["client1", "client2"])
    return ImageGen(service, pictures, ring, uploads, is_exclusive=is_exclusive)


@asynccontextmanager
async def opened(door, most_bytes):
    server = GrpcServer(door, "127.0.0.1:0", most_bytes=most_bytes)
    await server.start()
    await server.tell(is_ready=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop(0)


@pytest.fixture
async def channel(door):
    async with opened(door, MOST_BYTES) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return ImageGenStub(channel)


def wanted(**fields):
    return pb.GenerateRequest(**{**GOOD, **fields})


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()


async def begun(engine, count=1):
    async with asyncio.timeout(20):
        while len(engine.started) < count:
            await asyncio.sleep(0.002)


async def test_a_picture_to_start_from_is_taken_and_fitted(stub, engine):
    file = encode(ramp(200, 100), format="png")
    answer = await stub.Generate(wanted(image=file, strength=0.4), metadata=ONE)

    [request] = engine.started
    assert decode(request.source).shape == (64, 64, 3)
    assert request.params.strength == 0.4
    assert "its middle is used" in answer.warnings[0]


async def test_a_mask_says_what_is_redrawn_and_expand_what_is_added(stub, engine):
    file = encode(ramp(64, 64), format="png")
    mask = np.zeros((64, 64), np.uint8)
    mask[40:] = 255
    await stub.Generate(wanted(image=file, mask=encode_mask(mask)), metadata=ONE)
    await stub.Generate(wanted(image=file, expand=pb.Sides(left=64, bottom=64)), metadata=ONE)

    assert np.array_equal(decode_mask(engine.started[0].mask, (64, 64)), mask)
    grown = decode_mask(engine.started[1].mask, (64, 64))
    assert (grown[:, :30] == 255).all()
    assert (grown[:20, 44:] == 0).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": b"no"}, "image must be a whole PNG"),
        ({"strength": 0.0}, "above 0"),
        ({"mask": b"no"}, "mask needs the image"),
        ({"expand": pb.Sides(top=8)}, "expand needs the image"),
        ({"image": PIXEL, "mask": b"no"}, "mask must be a whole PNG"),
        ({"image": PIXEL, "expand": pb.Sides(left=2**31)}, "each from 0 to 8192"),
        ({"references": [PIXEL]}, "references[0]: fake looks at no picture; got 1"),
        ({"image": PIXEL, "references": [PIXEL]}, "fake takes one picture; got 2"),
    ],
)
async def test_what_cannot_be_started_from_is_refused(fields, words, stub):
    code, details = await code_of(stub.Generate(wanted(**fields), metadata=ONE))

    assert code == Code.INVALID_ARGUMENT
    assert words in details


@pytest.fixture
def loras(lora_folder):
    """`ink`, and `oil`, which lies there too."""
    for seed, name in enumerate(("ink", "oil")):
        save_file(random_lora({"a": (8, 8)}, seed=seed), lora_folder / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (LoraRef("oil"),)),
        ({"loras": pb.Loras()}, ()),
        ({"loras": pb.Loras(named=[pb.Lora(name="ink")])}, (LoraRef("ink"),)),
        ({"loras": pb.Loras(named=[pb.Lora(name="ink", strength=0.8), pb.Lora(name="oil")])},
         (LoraRef("ink", 0.8), LoraRef("oil"))),
        ({"loras": pb.Loras(named=[pb.Lora(name="ink", strength=0)])}, (LoraRef("ink", 0.0),)),
    ],
    ids=["nothing said", "none", "one", "two", "one without effect"],
)  # fmt: skip
async def test_loras_of_a_call_reach_its_picture(stub, engine, service, loras, given, expected):
    await service.loras.apply(LoraRef("oil"))
    await stub.Generate(wanted(**given), metadata=ONE)

    assert engine.started[0].pictures()[0].params.loras == expected


async def test_how_ranks_may_draw_a_picture_is_said_in_a_call(stub, engine):
    engine.models = (replace(INFO, ranks=4, approximations=("piflux",)),)
    await stub.Generate(wanted(parallel="piflux,sync=2", num_inference_steps=8), metadata=ONE)
    code, details = await code_of(stub.Generate(wanted(parallel="tensor"), metadata=ONE))

    assert engine.started[0].params.parallel == Approximation(mode="piflux", sync=2)
    assert (code, "one of piflux" in details) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ([pb.Lora(name="imk")], "did you mean ink?"),
        ([pb.Lora()], "a LoRA needs a name"),
        ([pb.Lora(name="ink")] * 2, "named twice"),
        ([pb.Lora(name="ink")] * 9, "at most 8; got 9"),
        ([pb.Lora(name="ink", strength=11)], "must be from -10 to 10; got 11"),
        ([pb.Lora(name="ink", strength=float("nan"))], "must be from -10 to 10; got nan"),
    ],
)
async def test_what_is_wrong_with_a_lora_is_said(stub, engine, loras, named, words):
    code, details = await code_of(stub.Generate(wanted(loras=pb.Loras(named=named)), metadata=ONE))

    assert (code, engine.started) == (Code.INVALID_ARGUMENT, [])
    assert words in details


async def test_an_answer_says_whose_network_drew(stub, engine):
    engine.models = (replace(INFO, backend="diffusers"),)
    whole = await stub.Generate(wanted(), metadata=ONE)
    parts = [part async for part in stub.GenerateStream(wanted(), metadata=ONE)]
    job_id = (await stub.Submit(pb.SubmitRequest(request=wanted()), metadata=ONE)).job_id
    job = pb.GetJobRequest(job_id=job_id)
    async with asyncio.timeout(20):
        while (done := await stub.GetJob(job, metadata=ONE)).state != "done":
            await asyncio.sleep(0.002)

    told = [whole.backend, parts[-1].finished.backend, done.result.backend]
    assert told == ["diffusers"] * 3


# ---- the seven


async def test_ping_says_pong(stub):
    assert (await stub.Ping(pb.PingRequest(), metadata=ONE)).message == "Pong"


@pytest.mark.parametrize("metadata", [None, [("api-key", "wrong")], [("api-key", "")]])
async def test_ping_without_a_good_key_is_refused(metadata, stub):
    code, details = await code_of(stub.Ping(pb.PingRequest(), metadata=metadata))
    assert (code, details) == (Code.UNAUTHENTICATED, "Invalid API key")


@pytest.mark.parametrize(
    "fields",
    [
        {"height": 0},
        {"height": 1025},
        {"width": -1},
        {"num_inference_steps": 0},
        {"num_inference_steps": 21},
        {"guidance_scale": 0.0},
        {"guidance_scale": 11.0},
        {"prompt": " "},
        {"seed": 2**64 - 1},
    ],
)
async def test_a_wrong_parameter_is_refused_by_its_name(fields, stub, engine):
    code, details = await code_of(stub.Generate(wanted(**fields), metadata=ONE))
    assert code == Code.INVALID_ARGUMENT
    assert next(iter(fields)) in details
    assert engine.started == []


async def test_generate_without_a_good_key_is_refused_before_all_else(stub):
    code, _ = await code_of(stub.Generate(wanted(height=0), metadata=[("api-key", "x")]))
    assert code == Code.UNAUTHENTICATED


async def test_generate_gives_a_picture_with_its_seed_and_time(stub, engine):
    said = await stub.Generate(wanted(guidance_scale=0.1), metadata=ONE)

    [request] = engine.started
    assert said.image_png == picture(request, 0)
    assert (said.inference_time, said.seed) == (1.0, request.seed)
    assert request.owner.startswith("env-")


@pytest.mark.parametrize("metadata", [ONE, TWO], ids=["same key", "other key"])
async def test_a_second_call_while_one_is_drawn_is_refused(metadata, stub, engine):
    first = stub.Generate(wanted(prompt="hang"), metadata=ONE)
    await begun(engine)
    code, _ = await code_of(stub.Generate(wanted(), metadata=metadata))
    engine.release()

    assert code == Code.RESOURCE_EXHAUSTED
    assert (await first).image_png


# ---- ours


@pytest.mark.parametrize("is_exclusive", [False], indirect=True)
async def test_when_told_so_each_key_has_a_place_of_its_own(stub, engine):
    first = stub.Generate(wanted(prompt="hang"), metadata=ONE)
    await begun(engine)
    other = await stub.Generate(wanted(), metadata=TWO)
    same, _ = await code_of(stub.Generate(wanted(), metadata=ONE))
    engine.release()
    await first

    assert other.image_png
    assert same == Code.RESOURCE_EXHAUSTED


async def test_who_hangs_up_is_not_drawn_for_and_frees_the_place(stub, engine):
    call = stub.Generate(wanted(prompt="hang"), metadata=ONE)
    await begun(engine)
    call.cancel()
    async with asyncio.timeout(20):
        while not engine.cancelled:
            await asyncio.sleep(0.002)

    assert (await stub.Generate(wanted(), metadata=ONE)).image_png


@pytest.mark.parametrize(("prompt", "code"), [("blown", Code.INTERNAL), ("broken", Code.INTERNAL)])
async def test_a_failure_is_never_ok_with_nothing(prompt, code, stub):
    got, details = await code_of(stub.Generate(wanted(prompt=prompt), metadata=ONE))
    assert got == code
    assert details


async def test_a_stream_tells_how_far_it_is_and_brings_the_file_in_parts(stub, engine, monkeypatch):
    monkeypatch.setattr("fluxline.server.rpc.door.CHUNK_BYTES", 10)
    call = stub.GenerateStream(wanted(seed=7, preview_every=2), metadata=ONE)
    told = [(message.WhichOneof("event"), message) async for message in call]

    kinds = [kind for kind, _ in told]
    data = b"".join(m.chunk.image_png for kind, m in told if kind == "chunk")
    assert (kinds[0], kinds[-1]) == ("queued", "finished")
    assert kinds.count("chunk") > 1
    assert data == picture(engine.started[0], 0)
    assert (told[-1][1].finished.seed, told[-1][1].finished.bytes) == (7, len(data))
    assert any(m.progress.preview_png for kind, m in told if kind == "progress")


async def test_a_submitted_picture_is_fetched_later_and_by_its_owner_alone(stub, engine):
    sent = pb.SubmitRequest(request=wanted(seed=3), idempotency_key="k")
    first = await stub.Submit(sent, metadata=ONE)
    again = await stub.Submit(sent, metadata=ONE)
    asked = pb.GetJobRequest(job_id=first.job_id)
    async with asyncio.timeout(20):
        while (job := await stub.GetJob(asked, metadata=ONE)).state != "done":
            await asyncio.sleep(0.005)

    assert first.job_id == again.job_id
    assert job.result.image_png == picture(engine.started[0], 0)
    code, _ = await code_of(stub.GetJob(asked, metadata=TWO))
    assert code == Code.NOT_FOUND


@pytest.mark.parametrize("key", ["", "a\0b", "a\nb", "\x7f", "k" * 256])
async def test_a_key_that_no_database_could_keep_is_refused_by_its_name(key, stub):
    sent = pb.SubmitRequest(request=wanted(), idempotency_key=key)
    code, details = await code_of(stub.Submit(sent, metadata=ONE))

    assert code == Code.INVALID_ARGUMENT
    assert "idempotency_key must have 1 to 255 printable characters" in details


async def test_a_submitted_picture_can_be_cancelled(stub, engine):
    sent = await stub.Submit(pb.SubmitRequest(request=wanted(prompt="hang")), metadata=ONE)
    await begun(engine)
    asked = pb.CancelRequest(job_id=sent.job_id)
    code, _ = await code_of(stub.Cancel(asked, metadata=TWO))
    await stub.Cancel(asked, metadata=ONE)
    job = pb.GetJobRequest(job_id=sent.job_id)
    async with asyncio.timeout(20):
        while (await stub.GetJob(job, metadata=ONE)).state != "cancelled":
            await asyncio.sleep(0.005)

    assert code == Code.NOT_FOUND


async def test_the_machine_is_told(stub):
    said = await stub.Metrics(pb.MetricsRequest(), metadata=ONE)
    assert (said.worker_alive, said.grpc_alive) == (True, True)
    assert said.ram_used_mb > 10


async def test_health_asks_no_key(channel):
    said = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service="imagegen.ImageGen")
    )
    assert said.status == health_pb2.HealthCheckResponse.SERVING


async def test_every_method_but_health_and_reflection_asks_for_a_key(channel):
    methods = pb.DESCRIPTOR.services_by_name["ImageGen"].methods
    for method in methods:
        path = f"/{method.containing_service.full_name}/{method.name}"
        if method.server_streaming:
            code, _ = await code_of(channel.unary_stream(path)(b"").read())
        else:
            code, _ = await code_of(channel.unary_unary(path)(b""))
        assert code == Code.UNAUTHENTICATED, method.name
    assert len(methods) == 7


async def test_a_packed_message_that_grows_too_long_is_refused(stub):
    call = stub.Generate(
        wanted(prompt="a" * 2**26), metadata=ONE, compression=grpc.Compression.Gzip
    )
    assert (await code_of(call))[0] == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("more", "code"), [(0, Code.INVALID_ARGUMENT), (1, Code.RESOURCE_EXHAUSTED)]
)
async def test_a_message_may_have_as_many_bytes_as_a_body_with_a_picture(more, code, stub):
    request = wanted(image=bytes(MOST_BYTES))
    request.image = bytes(2 * MOST_BYTES - request.ByteSize() + more)
    assert request.ByteSize() == MOST_BYTES + more

    assert (await code_of(stub.Generate(request, metadata=ONE)))[0] == code


@pytest.mark.parametrize("metadata", [None, [("api-key", "wrong")]])
async def test_of_who_has_no_good_key_no_message_is_taken_in(metadata, stub):
    request = wanted(image=bytes(MOST_BYTES))  # too long: it is refused by whoever takes it in
    call = stub.GenerateStream(request, metadata=metadata)

    assert (await code_of(stub.Generate(request, metadata=metadata)))[0] == Code.UNAUTHENTICATED
    assert (await code_of(call.read()))[0] == Code.UNAUTHENTICATED


async def test_messages_that_are_held_at_once_are_bounded_together(monkeypatch):
    monkeypatch.setattr("fluxline.server.rpc.serve.MOST_HELD_BYTES", 4 * 2**16)
    large, held, most_held = wanted(image=bytes(2**16 - 100)), [], []

    async def read():  # it takes its while to come in
        held.append(large)
        most_held.append(len(held))
        await asyncio.sleep(0.001)
        return large

    async def answer(request, context):
        await asyncio.sleep(0.001)
        held.remove(request)
        return "drawn"

    async def check(context): ...

    async def handler(details):
        return grpc.unary_unary_rpc_method_handler(answer)

    first = KeyFirst(SimpleNamespace(check=check), "imagegen", 2**16)
    details = SimpleNamespace(method="/imagegen/Generate")
    call = (await first.intercept_service(handler, details)).stream_unary
    answers = await asyncio.gather(*(call(None, SimpleNamespace(read=read)) for _ in range(100)))

    assert answers == ["drawn"] * 100
    assert max(most_held) == 4


@pytest.mark.parametrize("is_exclusive", [False], indirect=True)
async def test_a_message_is_held_until_it_is_answered(door, engine, monkeypatch):
    first, second = wanted(prompt="hang"), wanted(prompt="a fox")
    both = 100 + first.ByteSize()  # of 100 each, for so long as nobody knows better
    monkeypatch.setattr("fluxline.server.rpc.serve.MOST_HELD_BYTES", both - 1)
    monkeypatch.setattr("fluxline.server.rpc.serve.ROOM_S", 0.1)
    async with opened(door, 100) as channel:
        stub = ImageGenStub(channel)
        held = stub.Generate(first, metadata=ONE)
        await begun(engine)
        refused = stub.Generate(second, metadata=TWO)
        code, details = await code_of(refused)
        engine.release()
        await held

        assert (code, "held at once" in details) == (Code.UNAVAILABLE, True)
        assert (await refused.trailing_metadata())["retry-after"] == "5"
        assert (await stub.Generate(second, metadata=TWO)).image_png


async def test_messages_wait_for_room_before_they_are_refused(door, monkeypatch):
    monkeypatch.setattr("fluxline.server.rpc.serve.MOST_HELD_BYTES", 0)  # then it is one's
    async with opened(door, 2**16) as channel:
        ping = ImageGenStub(channel).Ping
        calls = (ping(pb.PingRequest(), metadata=TWO) for _ in range(50))

        assert {answer.message for answer in await asyncio.gather(*calls)} == {"Pong"}


@pytest.mark.parametrize("who", ["caller", "server"])
async def test_a_message_that_does_not_come_holds_room_until_it_is_given_up(who, door, monkeypatch):
    monkeypatch.setattr("fluxline.server.rpc.serve.MOST_HELD_BYTES", 0)
    monkeypatch.setattr("fluxline.server.rpc.serve.ROOM_S", 0.1)
    monkeypatch.setattr(
        "fluxline.server.rpc.serve.BODY_TIMEOUT_S", {"caller": 60, "server": 1}[who]
    )
    async with opened(door, 2**16) as channel:
        silent = channel.stream_unary("/imagegen.ImageGen/Ping")(metadata=ONE)
        await silent.wait_for_connection()
        ping = ImageGenStub(channel).Ping
        async with asyncio.timeout(20):
            while await (call := ping(pb.PingRequest(), metadata=TWO)).code() == Code.OK:
                pass  # it has not asked yet
        monkeypatch.setattr("fluxline.server.rpc.serve.ROOM_S", 20)
        if who == "caller":
            silent.cancel()
        else:
            code, details = await code_of(silent)
            assert (code, "took over 1 seconds" in details) == (Code.DEADLINE_EXCEEDED, True)

        assert await call.code() == Code.UNAVAILABLE
        assert (await ping(pb.PingRequest(), metadata=TWO)).message == "Pong"


@pytest.mark.parametrize("fields", [{}, {"image": b"no"}])
async def test_no_message_outlives_its_call(fields, stub):
    sent = wanted(prompt="a fox that nobody else asks for", **fields)
    gc.collect()
    gc.disable()
    try:
        await stub.Generate(sent, metadata=ONE).code()
        await asyncio.sleep(0.1)
        alive = [one for one in gc.get_objects() if isinstance(one, pb.GenerateRequest)]
        assert [one is sent for one in alive if one.prompt == sent.prompt] == [True]
    finally:
        gc.enable()


async def test_a_call_without_a_message_is_refused(channel):
    call = channel.stream_unary("/imagegen.ImageGen/Ping")(iter(()), metadata=ONE)
    assert (await code_of(call))[0] == Code.INVALID_ARGUMENT


def test_the_generated_code_is_of_this_proto(tmp_path):
    folder = "fluxline/server/rpc"
    command = ["-I", "src", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *command, f"src/{folder}/image_gen.proto"],
        cwd=ROOT,
        check=True,
    )
    for name in ("image_gen_pb2.py", "image_gen_pb2_grpc.py"):
        assert (tmp_path / folder / name).read_text() == (ROOT / "src" / folder / name).read_text()
