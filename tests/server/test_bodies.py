"""Bodies in the OpenAPI document: every field that a door reads, and none else."""

import base64
import json

import pytest
from fastapi import FastAPI

from fluxline.errors import InvalidParams
from fluxline.images import encode
from fluxline.profiles import Preset
from fluxline.server.bodies import describe, readings_of
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.fields import Fields, UnsupportedParam
from fluxline.server.outline import outlined
from fluxline.server.outside import Outside
from fluxline.server.words import WORDS
from tests.images.pictures import noise

BODILESS = {
    "/v1/jobs/{job_id}/cancel",
    "/v1/jobs/{job_id}/retry",
    "/sdapi/v1/refresh-checkpoints",
    "/sdapi/v1/refresh-loras",
    "/sdapi/v1/interrupt",
    "/sdapi/v1/skip",
    "/remove-lora",
}
FORMS = {"/v1/images/edits", "/v1/jobs"}
MOST = 4
READINGS = [
    pytest.param(read, id=f"{path} {number}")
    for path, kinds in readings_of(
        {"draft": Preset()}, Webhooks(None, None, Outside("")), max_n=MOST, max_batch=64
    ).items()
    for number, read in enumerate(kinds)
]
EVERY = {name for param in READINGS for name in outlined(param.values[0])["properties"]} | {
    *("markup", "svg", "frame_count", "enable_hr", "script_name", "finetune_id", "nobody_knows_it")
}
PICTURE = base64.b64encode(encode(noise(8, 8), format="png")).decode()
NEEDED = {"prompt": "a fox", "image": PICTURE, "init_images": [PICTURE], "lora_name": "ink"}


def asked(schema, **fields):
    """A body with what a door needs, and these."""
    return {name: NEEDED[name] for name in NEEDED if name in schema["properties"]} | fields


async def bodies(http):
    document = (await http.get("/openapi.json")).json()
    return {
        path: methods["post"].get("requestBody")
        for path, methods in document["paths"].items()
        if "post" in methods
    }


async def test_every_post_names_its_body_and_its_forms(http):
    named = await bodies(http)

    assert {path for path, body in named.items() if body is None} == BODILESS
    assert {path for path, body in named.items() if body and len(body["content"]) > 1} == FORMS
    form = named["/v1/images/edits"]["content"]["multipart/form-data"]["schema"]["properties"]
    for name in ("image", "images", "mask", "ref_images"):
        assert form[name]["anyOf"][0] == {"type": "string", "format": "binary"}


def test_a_document_that_could_not_be_made_is_not_kept_half_made():
    def draw(): ...

    app, doors = FastAPI(), {"/nowhere": (lambda fields: fields.text("prompt"),)}
    app.post("/draw")(draw)
    describe(app, lambda: doors)
    with pytest.raises(KeyError):
        app.openapi()
    with pytest.raises(KeyError):
        app.openapi()
    doors["/draw"] = doors.pop("/nowhere")

    assert "requestBody" in app.openapi()["paths"]["/draw"]["post"]
    assert app.openapi() is app.openapi()


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/v1/images/generations", "/v1/images/generations"),
        ("/v1/images/edits", "/v1/images/edits"),
        ("/v1/jobs", "/v1/jobs"),
        ("/generate", "/generate"),
        ("/v1/batches/generate", "/v1/batches/generate"),
        ("/submit-request", "/submit-request"),
        ("/sdapi/v1/txt2img", "/sdapi/v1/txt2img"),
        ("/sdapi/v1/img2img", "/sdapi/v1/img2img"),
        ("/v1/flux-{name}", "/v1/flux-dev"),
    ],
)
async def test_a_door_knows_every_field_that_is_said_of_it_and_no_other(path, url, http):
    said = (await bodies(http))[path]["content"]["application/json"]["schema"]
    for kind in said.get("anyOf", [said]):
        absent = dict.fromkeys((*kind["properties"], "nobody_knows_it"))
        needed = {name: value for name, value in asked(kind).items() if name != "lora_name"}
        answer = await http.post(url, json=absent | needed)

        assert answer.status_code in (200, 202), answer.text
        assert answer.text.count("unknown field") == 1
        assert "unknown field 'nobody_knows_it'" in answer.text


@pytest.mark.parametrize("read", READINGS)
def test_what_a_door_reads_beside_what_is_said_of_it_is_refused(read):
    schema = outlined(read)
    fields = Fields({**dict.fromkeys(EVERY), **asked(schema)})
    read(fields)
    known = EVERY - set(fields.unread())

    assert set(schema["properties"]) <= known
    for name in known - set(schema["properties"]):
        with pytest.raises(UnsupportedParam) as caught:
            read(Fields(asked(schema, **{name: "x"})))
        assert caught.value.field == name


@pytest.mark.parametrize("read", READINGS)
def test_what_is_beyond_what_is_said_of_a_field_is_refused(read):
    schema = outlined(read)
    for name, said in schema["properties"].items():
        if name == "include_init_images":
            continue  # whatever stands there is taken as true or false
        more = {"mask": "x"} if name.startswith(("mask_", "inpainting_")) else {}
        for wrong in beyond(said):
            many = {"n": MOST} if "n" in schema["properties"] else {}
            with pytest.raises(InvalidParams) as caught:
                read(Fields(asked(schema, **{**more, **many, name: wrong})))
            assert caught.value.field == name


def beyond(said):
    """Values that a schema does not have."""
    match said:
        case {"minimum": low, "maximum": high}:
            return [low - 1, high + 1, "x"]
        case {"enum": _}:
            return ["nobody_knows_it", 1]
        case {"type": "boolean" | "object"}:
            return ["x"]
        case {"type": "string"}:
            return [1]
    return []


def test_every_field_has_a_line_and_every_line_a_field():
    told = json.dumps([outlined(param.values[0]) for param in READINGS])

    assert [words for words in WORDS.values() if json.dumps(words) not in told] == []


async def test_the_page_shows_what_may_be_sent(http):
    page = (await http.get("/docs")).text

    assert "<code>prompt</code> (needed)<td>string<td>what to draw" in page
    assert f"<code>n</code><td>integer, 1 to {MOST}<td>pictures; 1 if left out" in page
