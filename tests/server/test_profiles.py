"""Several profiles behind one application: who draws what, and what is told of it."""

import asyncio

import httpx
import pytest
from safetensors.torch import save_file

from fluxline.ability import ModelInfo
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.jobs import JobStore
from fluxline.loras import LoraFolder
from fluxline.profiles import PRESETS, Preset, Profile
from fluxline.request import LoraRef
from fluxline.server.choice import Ports
from fluxline.service import Loras, Service
from tests.lora_files import random_lora
from tests.server.conftest import InlineReplica
from tests.worker.fake_engine import INFO, FakeEngine

URL = "/v1/images/generations"
DEV = ModelInfo(**{**{n: getattr(INFO, n) for n in INFO.__slots__}, "name": "dev", "guidance": 3.5})


class Known(InlineReplica):
    """A replica whose model is known while its worker is started again."""

    @property
    def models(self):
        return self.engine.models


class Loads(InlineReplica):
    """A replica that is loaded when the test says so."""

    def __init__(self, engine):
        super().__init__(engine)
        self.may_load = asyncio.Event()
        self.state, self.reason = "starting", "the model is loading"

    async def settled(self):
        await self.may_load.wait()
        self.state, self.reason = "ready", ""
        return self.state

    async def ended(self):
        await asyncio.Event().wait()

    async def stop(self):
        self.state = "stopped"


@pytest.fixture
def engines():
    """Of fp4 and bf16, which have one model, and of one that is loaded on demand."""
    return {"fp4": FakeEngine((DEV,)), "bf16": FakeEngine((DEV,)), "lazy": FakeEngine()}


@pytest.fixture
def replicas(engines):
    found = {name: Known(engines[name]) for name in ("fp4", "bf16")}
    return {**found, "lazy": Loads(engines["lazy"])}


@pytest.fixture
async def service(engines, replicas, database, pictures, lora_folder):
    save_file(random_lora({"a": (8, 8)}), lora_folder / "ink.safetensors")
    save_file(random_lora({"a": (8, 8)}), lora_folder / "oil.safetensors")
    rules = {
        "fp4": {"model": "dev", "fallback": "bf16"},
        "bf16": {"model": "dev", "from_priority": 5, "queue_limit": 1, "loras": {"ink": 0.5}},
        "lazy": {"model": "fake", "load": "lazy"},
    }
    members = [
        OnDemand(Profile(name=name, **rule), lambda name=name: replicas[name])
        for name, rule in rules.items()
    ]
    presets = {
        **PRESETS,
        "draft": Preset(steps=0.5, profile="fp4"),
        "ultra": Preset(steps=3, size=2, guidance=5, profile="bf16"),
    }
    service = Service(
        Router(members),
        JobStore(database),
        pictures,
        queue_limit=64,
        loras=Loras(LoraFolder(lora_folder)),
        presets=presets,
    )
    await service.start()
    yield service
    await service.close()
    for engine in engines.values():
        engine.close()


async def drawn(http, url=URL, **body):
    answer = await http.post(url, json={"prompt": "a fox", **body})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "fp4"),
        ({"profile": "bf16"}, "bf16"),
        ({"model": "bf16"}, "bf16"),
        ({"model": "dev"}, "fp4"),
        ({"quality": "low"}, "fp4"),
        ({"quality": "max"}, "bf16"),
        ({"preset": "ultra", "profile": "fp4"}, "fp4"),
        ({"priority": 7}, "bf16"),
    ],
)
async def test_a_request_is_drawn_by_whom_it_asks_for(body, name, http, engines):
    said = await drawn(http, **body)

    assert said["profile"] == name
    assert len(engines[name].started) == 1


@pytest.mark.parametrize("path", ["/generate", "/submit-request", "/v1/jobs"])
async def test_other_doors_take_the_same_fields(path, http, engines):
    await drawn(http, path, profile="bf16", preset="high", priority=2)
    async with asyncio.timeout(20):
        while not engines["bf16"].started:
            await asyncio.sleep(0.002)

    [request] = engines["bf16"].started
    assert (request.priority, request.params.steps) == (2, 6)


async def test_a_profile_has_an_address_of_its_own(http):
    assert (await drawn(http, "/bf16/generate"))["profile"] == "bf16"
    batch = await drawn(http, "/bf16/generate", nof_images=2)
    assert (batch["profile"], batch["count"]) == ("bf16", 2)
    body = {"prompt": "a fox", "profile": "fp4"}
    refused = await http.post("/bf16/generate", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "profile")
    unknown = await http.post("/who/generate", json={"prompt": "a fox"})
    assert "served: fp4, bf16, lazy" in unknown.json()["error"]["message"]


async def test_a_preset_fills_in_what_the_request_leaves_open(http, engines):
    said = await drawn(http, preset="ultra")
    own = await drawn(http, preset="ultra", steps=3, size="64x32", guidance=1)

    filled, asked = (request.params for request in engines["bf16"].started)
    assert (filled.steps, filled.width, filled.height, filled.guidance) == (12, 128, 128, 5)
    assert (asked.steps, asked.width, asked.height, asked.guidance) == (3, 64, 32, 1)
    assert (said["preset"], said["quality"], own["preset"]) == ("ultra", "max", "ultra")
    assert (await drawn(http))["preset"] is None


async def test_words_that_contradict_each_other_are_refused(http):
    body = {"prompt": "a fox", "preset": "draft", "quality": "high"}
    answer = await http.post(URL, json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "quality")
    assert "preset high" in answer.json()["error"]["message"]


async def test_one_that_is_down_is_stood_in_for_and_the_answer_says_so(http, replicas):
    replicas["fp4"].state = "restarting"
    said = await drawn(http)

    assert said["profile"] == "bf16"
    assert said["warnings"] == ["profile fp4 is down: drawn with bf16"]


async def test_a_job_that_waits_for_one_that_fails_is_drawn_by_who_stands_in(
    http, replicas, engines
):
    replicas["fp4"].state = "starting"
    job = await drawn(http, "/v1/jobs")
    assert engines["bf16"].started == []
    replicas["fp4"].state = "failed"
    async with asyncio.timeout(20):
        while (told := (await http.get(f"/v1/jobs/{job['id']}")).json())["status"] != "done":
            await asyncio.sleep(0.01)

    assert told["images"][0]["profile"] == "bf16"
    assert told["images"][0]["warnings"] == ["profile fp4 is down: drawn with bf16"]


async def test_who_waits_for_one_that_fails_and_has_no_stand_in_is_told(http, replicas):
    replicas["bf16"].state = "starting"
    waiting = asyncio.create_task(http.post(URL, json={"prompt": "a fox", "profile": "bf16"}))
    await asyncio.sleep(0.05)
    replicas["bf16"].state, replicas["bf16"].reason = "failed", "the card is gone"
    async with asyncio.timeout(20):
        early = await waiting
    late = await http.post(URL, json={"prompt": "a fox", "profile": "bf16"})

    for answer in (early, late):
        assert answer.status_code == 503
        assert "the card is gone" in answer.json()["error"]["message"]


async def test_callers_of_a_lazy_profile_share_one_load(http, replicas, engines):
    callers = [
        asyncio.create_task(http.post(URL, json={"prompt": f"fox {k}", "profile": "lazy"}))
        for k in range(3)
    ]
    await asyncio.sleep(0.05)
    said = (await http.get("/health/ready")).json()
    assert said["profiles"] == {"fp4": "ready", "bf16": "ready", "lazy": "starting"}

    replicas["lazy"].may_load.set()

    assert {(await caller).status_code for caller in callers} == {200}
    assert len(engines["lazy"].started) == 3


async def test_every_profile_is_listed_as_it_is(http, replicas):
    listed = (await http.get("/v1/models")).json()["data"]
    assert [(one["id"], one["model"], one["state"]) for one in listed] == [
        ("fp4", "dev", "ready"),
        ("bf16", "dev", "ready"),
        ("lazy", "fake", "unloaded"),
    ]
    assert ("dtype" in listed[0], "dtype" in listed[2]) == (True, False)
    assert (await http.get("/v1/models/bf16")).json()["profile"] == "bf16"
    capable = (await http.get("/v1/capabilities")).json()
    assert capable["presets"] == ["draft", "standard", "high", "ultra"]
    assert [one["name"] for one in capable["models"]] == ["fp4", "bf16", "lazy"]


async def test_a_model_is_loaded_and_unloaded_as_told(http, replicas):
    replicas["lazy"].may_load.set()
    loaded = await http.post("/load-model", json={"profile": "lazy"})
    status = (await http.get("/model-status", params={"profile": "lazy"})).json()
    gone = await http.post("/unload-model", params={"profile": "lazy"})
    after = (await http.get("/model-status", params={"profile": "lazy"})).json()
    stays = await http.post("/unload-model", json={"profile": "fp4"})

    assert "Model fake loaded" in loaded.json()["message"]
    assert (status["model_loaded"], status["state"], status["replicas"]) == (True, "ready", 1)
    assert (gone.status_code, after["state"], after["model_loaded"]) == (200, "unloaded", False)
    assert after["model"] == "fake"  # it is known from then on
    assert (stays.status_code, stays.json()["error"]["code"]) == (409, "in_use")


async def test_a_profile_may_have_a_queue_of_its_own(http, replicas):
    replicas["bf16"].state = "starting"
    await drawn(http, "/v1/jobs", profile="bf16")
    refused = await http.post("/v1/jobs", json={"prompt": "a fox", "profile": "bf16"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert "1 requests wait for bf16" in refused.json()["error"]["message"]
    await drawn(http, "/v1/jobs", profile="fp4")


@pytest.mark.parametrize(
    ("port", "body", "name"),
    [
        (8000, {}, "fp4"),
        (8001, {}, "bf16"),
        (8001, {"profile": "fp4"}, "fp4"),
        (8001, {"quality": "low"}, "bf16"),
        (8001, {"model": "lazy"}, "lazy"),
    ],
)
async def test_a_port_says_the_profile_of_who_names_none(port, body, name, app, replicas):
    replicas["lazy"].may_load.set()
    ports = Ports(app, by_port={8000: "fp4", 8001: "bf16"})
    url = f"http://localhost:{port}"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(ports), base_url=url) as http:
        assert (await drawn(http, **body))["profile"] == name


async def test_a_profiles_lora_that_is_gone_is_told_to_who_named_none(http, lora_folder):
    (lora_folder / "ink.safetensors").unlink()
    body = {"prompt": "a fox", "profile": "bf16"}
    refused = await http.post("/v1/images/generations", json=body)
    assert refused.status_code == 400
    assert "no LoRA 'ink' here" in refused.text
    assert "acts here on what names none" in refused.text
    without = await http.post("/v1/images/generations", json={**body, "loras": []})
    assert without.status_code == 200


async def test_a_profiles_loras_act_where_a_request_names_none(http, engines):
    await drawn(http, profile="bf16")
    await drawn(http, profile="bf16", loras=["oil"])
    await drawn(http, profile="bf16", loras=[])
    await drawn(http, profile="fp4")
    assert [request.params.loras for request in engines["bf16"].started] == [
        (LoraRef("ink", 0.5),),
        (LoraRef("oil", 1.0),),
        (),
    ]
    assert [request.params.loras for request in engines["fp4"].started] == [()]


async def test_a_preset_fills_in_what_is_open_at_every_door(http, engines):
    for door, body in (
        (URL, {}),
        ("/sdapi/v1/txt2img", {}),
        ("/generate", {"num_inference_steps": None}),
        ("/v1/flux-dev", {}),
    ):
        before = len(engines["bf16"].started)
        answer = await http.post(door, json={"prompt": "a fox", "preset": "ultra", **body})
        assert answer.status_code in (200, 202), answer.text
        async with asyncio.timeout(20):
            while len(engines["bf16"].started) == before:  # a job is begun later
                await asyncio.sleep(0.002)
        params = engines["bf16"].started[-1].params
        assert (params.steps, params.width, params.guidance) == (12, 128, 5), door


async def planned(http, engine, **body):
    """What a batch says, and the parameters that it was drawn with."""
    said = await drawn(http, "/v1/batches/generate", nof_images=6, **body)
    return said, [one.params for one in engine.started[-1].pictures()]


async def test_a_preset_fills_in_what_a_batch_leaves_open(http, engines):
    said, filled = await planned(http, engines["bf16"], quality="max")

    assert said["preset"] == "ultra"
    assert {(p.steps, p.width, p.height, p.guidance) for p in filled} == {(12, 128, 128, 5)}
    assert {p.sampler for p in filled} == {"euler", "ddim", "dpmpp_2m"}


@pytest.mark.parametrize(
    ("body", "steps", "width", "scales"),
    [
        ({"steps": 3, "guidance_scale": 2, "width": 64}, {3}, 64, {2}),
        ({"diversity": {"nof_steps": [3, 7], "cfg_scales": [1, 2]}}, {3, 7}, 128, {1, 2}),
    ],
    ids=["for the whole", "as axes"],
)
async def test_what_a_batch_says_itself_beats_its_preset(http, engines, body, steps, width, scales):
    _, own = await planned(http, engines["bf16"], preset="ultra", **body)

    assert {p.steps for p in own} == steps
    assert {p.width for p in own} == {width}
    assert {p.guidance for p in own} == scales


async def test_a_preset_without_guidance_lets_a_batch_vary_it(http, engines):
    said, filled = await planned(http, engines["fp4"], preset="draft")
    plain, _ = await planned(http, engines["fp4"])

    assert (said["profile"], said["preset"], plain["preset"]) == ("fp4", "draft", None)
    assert {(p.steps, p.width) for p in filled} == {(2, 512)}
    assert len({p.guidance for p in filled}) == 3


async def test_a_key_of_one_port_does_not_answer_at_another(service, http, engines):
    ports = Ports(http._transport.app, {8001: "bf16"})
    told = {"idempotency-key": "one"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=ports), base_url="http://localhost:8001"
    ) as other:
        first = await http.post(URL, json={"prompt": "a fox"}, headers=told)
        second = await other.post(URL, json={"prompt": "a fox"}, headers=told)
    assert first.status_code == 200
    assert "another request" in second.json()["error"]["message"], second.text
