"""LoRAs at every door: listed, named by a request, and applied to those that name none."""

import asyncio
import json

import pytest
from safetensors.torch import save_file

from fluxline.images import encode
from fluxline.request import LoraRef
from tests.images.pictures import noise
from tests.lora_files import random_lora
from tests.server.dialects.test_admin import status, submitted

FOX = {"prompt": "a fox"}


@pytest.fixture(autouse=True)
def files(lora_folder):
    """`ink` with trigger words and a preview, and `styles/oil`."""
    (lora_folder / "styles").mkdir()
    layers = {"a": (8, 8)}
    about = {"trigger": "ink drawing"}
    save_file(random_lora(layers, rank=6), lora_folder / "ink.safetensors", about)
    (lora_folder / "ink.png").write_bytes(encode(noise(4, 4), format="png"))
    save_file(random_lora(layers, seed=1), lora_folder / "styles" / "oil.safetensors")
    return lora_folder


async def drawn_with(http, engine, door, **body):
    """What the engine was asked to draw with, by a body at a door."""
    before = len(engine.started)
    answer = await http.post(door, json={**FOX, **body})
    assert answer.status_code in (200, 202), answer.text
    async with asyncio.timeout(20):
        while len(engine.started) == before:  # a job is begun later
            await asyncio.sleep(0.002)
    return [picture.params.loras for picture in engine.started[-1].pictures()]


async def test_the_list_says_all_that_is_known_of_each(http, files):
    said = (await http.get("/loras")).json()["loras"]

    ink, oil = said
    assert (ink["name"], ink["rank"], ink["trigger_words"]) == ("ink", 6, ["ink drawing"])
    assert ink["size_bytes"] == (files / "ink.safetensors").stat().st_size
    assert len(ink["hash"]) == 12
    assert ink["hash"] != oil["hash"]
    assert (oil["name"], oil["preview"], oil["trigger_words"]) == ("styles/oil", None, [])
    shown = await http.get(ink["preview"])
    assert shown.content == (files / "ink.png").read_bytes()
    assert shown.headers["content-type"] == "image/png"
    assert str(files) not in json.dumps(said)


async def test_a_file_that_comes_later_is_listed_and_usable_at_once(http, engine, files):
    save_file(random_lora({"a": (8, 8)}), files / "new.safetensors")

    assert "new" in [one["name"] for one in (await http.get("/loras")).json()["loras"]]
    assert await drawn_with(http, engine, "/v1/images/generations", loras=["new"]) == [
        (LoraRef("new"),)
    ]


@pytest.mark.parametrize("name", ["styles/oil", "who", "../ink", "/etc/passwd"])
async def test_there_is_no_preview_but_what_lies_beside_a_lora(http, name):
    answer = await http.get("/loras/preview", params={"name": name})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("body", "loras"),
    [
        ({"loras": [{"name": "ink", "strength": 0.8}]}, (LoraRef("ink", 0.8),)),
        ({"loras": [{"name": "ink"}, {"name": "oil", "scale": -1}]},
         (LoraRef("ink", 1.0), LoraRef("oil", -1.0))),
        ({"loras": ["ink"]}, (LoraRef("ink"),)),
        ({"lora": {"name": "ink", "weight": 2}}, (LoraRef("ink", 2.0),)),
        ({"loras": []}, ()),
        ({}, ()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("door", ["/v1/images/generations", "/v1/jobs", "/v1/flux-dev"])
async def test_loras_of_a_request_reach_its_pictures(http, engine, door, body, loras):
    assert set(await drawn_with(http, engine, door, **body)) == {loras}


@pytest.mark.parametrize("door", ["/generate", "/submit-request", "/v1/batches/generate"])
async def test_the_dual_services_lora_reaches_its_pictures(http, engine, door):
    given = {"lora_name": "ink", "lora_weight": 0.5}
    assert set(await drawn_with(http, engine, door, **given)) == {(LoraRef("ink", 0.5),)}


async def test_the_dual_service_is_told_what_acted(http):
    said = (await http.post("/generate", json={**FOX, "lora_name": "ink"})).json()
    assert (said["lora_applied"], said["lora_weight"]) == ("ink", 1.0)


async def test_an_a1111_prompt_names_its_loras_and_is_drawn_without_them(http, engine):
    prompt = "a fox <lora:ink:0.8>, sitting <LORA:styles/oil>"
    loras = await drawn_with(http, engine, "/sdapi/v1/txt2img", prompt=prompt)

    assert loras == [(LoraRef("ink", 0.8), LoraRef("styles/oil", 1.0))]
    assert engine.started[-1].prompt == "a fox, sitting"


async def test_the_infotext_of_an_a1111_answer_says_them_again(http):
    answer = await http.post("/sdapi/v1/txt2img", json={"prompt": "a fox <lora:ink:0.8>"})
    info = json.loads(answer.json()["info"])
    assert info["infotexts"][0].startswith("a fox <lora:ink:0.8>\n")


async def test_a1111s_clients_find_the_loras(http):
    said = (await http.get("/sdapi/v1/loras")).json()
    assert [one["name"] for one in said] == ["ink", "styles/oil"]
    assert said[0]["metadata"] == {"activation text": "ink drawing"}
    assert (await http.post("/sdapi/v1/refresh-loras")).status_code == 200


@pytest.mark.parametrize(
    ("door", "body", "code", "param"),
    [
        ("/v1/images/generations", {"loras": ["imk"]}, 400, "loras"),
        ("/v1/images/generations", {"loras": ["../ink"]}, 400, "loras"),
        ("/v1/images/generations", {"loras": [{"strength": 1}]}, 400, "loras"),
        ("/v1/images/generations", {"loras": [{"name": "ink", "by": 1}]}, 400, "loras[0].by"),
        ("/v1/images/generations", {"loras": [7]}, 400, "loras"),
        ("/v1/images/generations", {"loras": ["ink", "ink"]}, 400, "loras"),
        ("/v1/images/generations", {"loras": ["ink"] * 9}, 400, "loras"),
        ("/v1/images/generations", {"loras": [{"name": "ink", "strength": 11}]}, 400,
         "loras[0].strength"),
        ("/v1/jobs", {"loras": ["imk"]}, 400, "loras"),
        ("/generate", {"lora_name": "imk"}, 422, "lora_name"),
        ("/generate", {"lora_name": "ink", "lora_weight": 2.1}, 422, "lora_weight"),
        ("/generate", {"lora_name": "ink", "lora_weight": -0.1}, 422, "lora_weight"),
        ("/submit-request", {"lora_name": "imk"}, 422, "lora_name"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_lora_is_named(http, engine, door, body, code, param):
    answer = await http.post(door, json={**FOX, **body})

    assert (answer.status_code, answer.json()["error"]["param"]) == (code, param)
    if "imk" in json.dumps(body):
        assert "did you mean ink?" in answer.text
    assert engine.started == []


@pytest.mark.parametrize(
    ("loras", "field"),
    [(["imk"], "loras"), (["ink", "ink"], "loras"), ([{"name": "ink", "strength": 11}],
     "loras[0].strength")],
)  # fmt: skip
async def test_what_is_wrong_with_a_lora_is_named_in_bfls_words(http, engine, loras, field):
    answer = await http.post("/v1/flux-dev", json={**FOX, "loras": loras})
    elsewhere = await http.post("/v1/images/generations", json={**FOX, "loras": loras})

    said, error = answer.json(), elsewhere.json()["error"]
    assert (answer.status_code, said["details"]["field"]) == (422, field)
    assert (said["message"], said["error"]) == (error["message"], error["code"])
    assert engine.started == []


@pytest.mark.parametrize(
    "how",
    [
        {"json": {"lora_name": "ink", "lora_weight": 0.5}},
        {"json": {"lora_name": "ink", "weight": 0.5}},
        {"params": {"lora_name": "ink", "weight": "0.5"}},
        {"params": {"lora_name": "ink", "lora_weight": "0.5"}},
    ],
    ids=["JSON", "JSON, the other name", "query of FP4", "query of BF16"],
)
async def test_a_lora_that_is_applied_acts_until_it_is_removed(http, engine, how):
    applied = await http.post("/apply-lora", **how)
    after = await drawn_with(http, engine, "/v1/images/generations")
    told = (await http.get("/lora-status")).json()
    own = await drawn_with(http, engine, "/v1/images/generations", loras=["oil"])
    none = await drawn_with(http, engine, "/v1/images/generations", loras=[])
    removed = await http.post("/remove-lora")
    at_last = await drawn_with(http, engine, "/generate")

    assert (applied.status_code, applied.json()["lora_name"]) == (200, "ink")
    assert after == [(LoraRef("ink", 0.5),)]
    assert (told["lora_applied"], told["current_lora"], told["lora_weight"]) == (True, "ink", 0.5)
    assert own == [(LoraRef("oil"),)]
    assert none == [()]
    assert removed.json()["lora_applied"] is False
    assert at_last == [()]


async def test_what_was_applied_is_written_into_the_job(http, engine):
    """So that a job that is drawn again after a crash draws the same."""
    await http.post("/apply-lora", json={"lora_name": "ink"})
    request_id = await submitted(http)
    await status(http, request_id, "completed")
    await http.post("/remove-lora")

    job = (await http.get(f"/v1/jobs/{request_id}")).json()
    assert job["request"]["loras"] == [{"name": "ink", "strength": 1.0}]


@pytest.mark.parametrize(
    ("how", "param"),
    [
        ({"json": {"lora_name": "imk"}}, "lora_name"),
        ({"json": {"lora_name": "username/model-name"}}, "lora_name"),
        ({"json": {"lora_name": "ink", "weight": 3}}, "weight"),
        ({"json": {"lora_name": "ink", "weight": 1, "lora_weight": 0.5}}, "weight"),
        ({"params": {"lora_name": "ink", "weight": "much"}}, "weight"),
        ({}, "lora_name"),
    ],
)
async def test_what_cannot_be_applied_is_named_and_changes_nothing(http, how, param):
    answer = await http.post("/apply-lora", **how)

    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert (await http.get("/lora-status")).json()["lora_applied"] is False


async def test_a_file_that_cannot_be_read_is_not_listed_and_spoils_no_list(http, files):
    (files / "gone.safetensors").symlink_to(files / "nowhere")
    folder = files / "dir.safetensors"
    folder.mkdir()
    (files / "ink.png").unlink()
    (files / "ink.png").symlink_to(files / "ink.png")
    said = (await http.get("/loras")).json()["loras"]
    assert [one["name"] for one in said] == ["ink", "styles/oil"]
