"""Pictures drawn from pictures, at every door that takes one."""

import asyncio
import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fluxline import images
from fluxline.images import decode, decode_mask, encode, encode_mask
from fluxline.request import SamplingParams
from tests.images.pictures import noise, ramp
from tests.worker.fake_engine import INFO, picture

EDITS, IMG2IMG = "/v1/images/edits", "/sdapi/v1/img2img"
FILE = encode(ramp(64, 48), format="png")
TEXT = base64.b64encode(FILE).decode()
SMALL = encode(noise(8, 8), format="png")
SQUARE = base64.b64encode(SMALL).decode()
BLACK = encode_mask(np.zeros((48, 64), np.uint8))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
PAD = " " * 250_000
JSON = {"content-type": "application/json"}
PART = {"image": ("upload", FILE, "application/octet-stream")}


async def begun(engine):
    async with asyncio.timeout(20):
        while not engine.started:
            await asyncio.sleep(0.002)


async def edited(http, status=200, url=EDITS, **asked):
    answer = await http.post(url, **asked)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai/deployments/fake"])
async def test_a_form_is_drawn_from_its_file(prefix, http, engine):
    form = {
        "prompt": "a hat",
        "n": "2",
        "size": "64x48",
        "seed": "7",
        "strength": "0.5",
        "input_fidelity": "high",
        "response_format": "b64_json",
    }
    said = await edited(http, url=f"{prefix}/images/edits", data=form, files=PART)

    [request] = engine.started
    assert np.array_equal(decode(request.source), ramp(64, 48))
    assert (request.n, request.seed) == (2, 7)
    assert request.params == SamplingParams(width=64, height=48, steps=4, strength=0.5, loras=())
    assert base64.b64decode(said["data"][1]["b64_json"]) == picture(request, 1)
    assert said["warnings"] == ["input_fidelity is ignored"]
    assert said["usage"]["input_tokens_details"] == {"text_tokens": 64, "image_tokens": 16}
    assert said["usage"]["input_tokens"] == 80


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]", "images"])
async def test_the_file_may_be_called_as_clients_call_it(name, http, engine):
    await edited(http, data={"prompt": "a hat"}, files={name: PART["image"]})

    assert engine.started[0].source is not None


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (EDITS, {"images": [{"image_url": f"data:image/png;base64,{TEXT}"}]}),
        (EDITS, {"image": TEXT}),
        ("/v1/images/generations", {"ref_images": [TEXT], "denoising_strength": 0.25}),
        ("/v1/images/generations", {"image": TEXT, "strength": 0.25}),
    ],
)
async def test_json_brings_its_picture_as_text(url, body, http, engine):
    await edited(http, url=url, json={"prompt": "a hat", **body})

    [request] = engine.started
    assert decode(request.source).shape[:2] == (request.params.height, request.params.width)
    strength = body.get("strength", body.get("denoising_strength"))
    assert request.params.strength == strength


async def test_without_a_size_the_picture_is_as_it_came(http, engine):
    await edited(http, json={"prompt": "a hat", "image": TEXT, "size": "auto"})

    params = engine.started[0].params
    assert (params.width, params.height) == (80, 48)  # wide as it is, of whole tiles


async def test_a_picture_of_another_shape_is_cropped_and_that_is_said(http, engine):
    said = await edited(http, json={"prompt": "a hat", "image": TEXT, "size": "64x16"})

    assert decode(engine.started[0].source).shape == (16, 64, 3)
    assert "of the picture given, its middle is used" in said["warnings"][0]


async def test_a_stream_of_an_edit_says_so(http):
    form = {"prompt": "a hat", "stream": "true", "partial_images": "1"}
    answer = await http.post(EDITS, data=form, files=PART)

    kinds = [line.removeprefix("event: ") for line in answer.text.splitlines() if "event:" in line]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]
    last = json.loads(answer.text.split("data: ")[-1])
    assert last["type"] == "image_edit.completed"


async def test_partial_pictures_are_spread_over_the_steps_that_are_walked(http, engine):
    form = {"prompt": "a hat", "stream": "true", "partial_images": "2"}
    form |= {"steps": "20", "strength": "0.5"}
    await http.post(EDITS, data=form, files=PART)

    assert engine.started[0].preview_every == 4  # of ten evaluations the 4th and the 8th


@pytest.mark.parametrize(
    ("form", "files", "field", "words"),
    [
        ({"prompt": "a hat"}, {"hat": PART["image"]}, "image", "image is required"),
        ({"prompt": "a hat", "image": ""}, {"hat": PART["image"]}, "image", "image is required"),
        ({"prompt": "a hat", "size": "12000x12000"}, PART, "size", "must be a whole number"),
        ({}, PART, "prompt", "prompt is required"),
        ({"prompt": "a hat", "n": "two"}, PART, "n", "must be an integer"),
        ({"prompt": "a hat", "strength": "0"}, PART, "strength", "above 0"),
        ({"prompt": "a hat", "strength": "2"}, PART, "strength", "from 0 to 1"),
        ({"prompt": "a hat"}, {**PART, "mask": ("m", b"", "image/png")}, "mask", "is empty"),
        ({"prompt": "a hat"}, {**PART, "mask": ("m", SMALL)}, "mask", "64x48; got 8x8"),
        ({"prompt": "a hat"}, {**PART, "mask": ("m", BLACK)}, "mask", "nothing in it is"),
        ({"prompt": "a hat"}, {"mask": ("m", SMALL)}, "image", "image is required"),
        ({"prompt": "a hat"}, {**PART, "image[]": ("x", HEIC)}, "image", "takes one picture"),
        ({"prompt": "a hat"}, {"image": ("x.heic", HEIC, "image/heic")}, "image", "whole PNG"),
        ({"prompt": "a hat", "expand": "64"}, PART, "expand", "px to add at the left"),
        ({"prompt": "a hat", "expand": "1,2,3,x"}, PART, "expand", "px to add at the left"),
        ({"prompt": "a hat", "expand": "1,2,3,-4"}, PART, "expand", "from 0 to 8192"),
        ({"prompt": "a hat", "expand": "0,0,800,0"}, PART, "expand", "makes 864x48"),
        ({"prompt": "a hat"}, {"image": ("x", b"no", "image/png")}, "image", "whole PNG"),
        ({"prompt": "a hat"}, {"image": ("x", b"", "image/png")}, "image", "whole PNG"),
        ({"image": "a hat!"}, {"prompt": PART["image"]}, "prompt", "got a file"),
        ({"prompt": "a hat", "image": "a hat!"}, {"x": PART["image"]}, "image", "base64"),
        ({"prompt": ["a", "b"]}, PART, None, "has prompt twice"),
    ],
)
async def test_what_is_wrong_is_refused_by_its_name(form, files, field, words, http, engine):
    said = await edited(http, 400, data=form, files=files)

    assert said["error"]["param"] == field
    assert words in said["error"]["message"]
    assert not engine.started


async def test_several_pictures_are_refused_by_a_model_that_takes_one(http, engine, reader):
    files = [("image[]", PART["image"])] * 2
    said = await edited(http, 400, data={"prompt": "a hat"}, files=files)

    assert (said["error"]["param"], said["error"]["code"]) == ("image", "unsupported_parameter")
    assert "fake takes one picture; got 2" in said["error"]["message"]


# ---- masks, and what is drawn beside a picture


def masked(width=64, height=48):
    """The left half of a mask is to be redrawn."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


@pytest.mark.parametrize("name", ["mask", "mask[]"])
async def test_a_mask_goes_along_and_is_made_to_fit_as_its_picture(name, http, engine):
    files = {**PART, name: ("mask.png", encode_mask(masked()), "image/png")}
    await edited(http, data={"prompt": "a hat", "size": "32x32"}, files=files)

    [request] = engine.started
    fitted = decode_mask(request.mask, (32, 32))
    assert (fitted[:, :12] == 255).all()
    assert (fitted[:, 20:] == 0).all()
    assert request.params.strength is None  # as much as a mask has unless it is said


@pytest.mark.parametrize("url", [EDITS, "/v1/images/generations", "/v1/jobs"])
async def test_what_is_transparent_in_a_mask_is_redrawn(url, http, engine):
    clear, file = np.dstack([ramp(64, 48), 255 - masked()]), io.BytesIO()
    Image.fromarray(clear).save(file, "png")
    link = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    body = {"prompt": "a hat", "image": TEXT, "mask": {"image_url": link}, "size": "64x48"}
    await edited(http, 202 if url == "/v1/jobs" else 200, url, json=body)
    await begun(engine)

    [request] = engine.started
    assert np.array_equal(decode_mask(request.mask, (48, 64)), masked())


def cut(hole, depth=0):
    """A form's picture that is transparent in a part of it; depth: the alpha there."""
    alpha, file = np.full((48, 64), 255, np.uint8), io.BytesIO()
    alpha[hole] = depth
    Image.fromarray(np.dstack([ramp(64, 48), alpha])).save(file, "png")
    return {"image": ("upload", file.getvalue())}


LEFT = np.s_[:, :32]
AS_DRAWN = {"prompt": "a hat", "size": "64x48"}
CUT_TOLD = "what is transparent in the picture given is taken for its mask"


async def test_without_a_mask_what_is_transparent_in_the_picture_is_redrawn(http, engine):
    said = await edited(http, data=AS_DRAWN, files=cut(LEFT))

    [request] = engine.started
    assert np.array_equal(decode_mask(request.mask, (48, 64)), masked())
    assert np.array_equal(decode(request.source)[:, 32:], ramp(64, 48)[:, 32:])
    assert request.params.strength is None  # as much as a mask has unless it is said
    assert said["warnings"] == [CUT_TOLD]


async def test_a_mask_beside_it_is_the_mask_whatever_is_transparent(http, engine):
    files = {**cut(np.s_[:10]), "mask": ("mask.png", encode_mask(masked()), "image/png")}
    said = await edited(http, data=AS_DRAWN, files=files)

    [request] = engine.started
    assert np.array_equal(decode_mask(request.mask, (48, 64)), masked())
    assert said["warnings"] == []


@pytest.mark.parametrize(
    ("form", "picture"),
    [
        ({}, cut(LEFT, depth=1)),
        ({"size": "16x48"}, cut(np.s_[:, :8])),  # of which the middle is drawn
        ({"size": "16x12"}, cut(np.s_[9, 9])),
    ],
    ids=["nothing is wholly", "it is cropped away", "too little of it is left"],
)
async def test_where_nothing_transparent_is_drawn_nothing_is_masked(form, picture, http, engine):
    said = await edited(http, data={**AS_DRAWN, **form}, files=picture)

    assert engine.started[0].mask is None
    assert CUT_TOLD not in said["warnings"]


@pytest.mark.parametrize("url", ["/v1/images/generations", "/v1/jobs"])
async def test_at_other_doors_what_is_transparent_in_a_picture_is_white(url, http, engine):
    file = base64.b64encode(cut(LEFT)["image"][1]).decode()
    await edited(http, 202 if "jobs" in url else 200, url, json={**AS_DRAWN, "image": file})
    await begun(engine)

    assert engine.started[0].mask is None
    assert (decode(engine.started[0].source)[:, :32] == 255).all()


async def test_a_model_that_fills_fills_what_is_transparent(http, engine):
    engine.models = (replace(INFO, fills=True),)
    await edited(http, data=AS_DRAWN, files=cut(LEFT))
    said = await edited(http, 400, data=AS_DRAWN, files=PART)

    [request] = engine.started
    assert np.array_equal(decode_mask(request.mask, (48, 64)), masked())
    assert said["error"]["param"] == "mask"


@pytest.mark.parametrize(
    "expand", [{"expand": "16, 0, 32, 8"}, {"expand[]": ["16", "0", "32", "8"]}], ids=list
)
async def test_expand_draws_beside_the_picture(expand, http, engine):
    await edited(http, data={"prompt": "a hat", **expand}, files=PART)

    [request] = engine.started
    assert (request.params.width, request.params.height) == (112, 56)
    assert np.array_equal(decode(request.source)[:48, 16:80], ramp(64, 48))
    beside = decode_mask(request.mask, (56, 112))
    assert (beside[:, :16] == 255).all()
    assert beside[20, 50] == 0


async def test_a_job_says_what_it_was_drawn_from(http, engine):
    body = {"prompt": "a hat", "image": TEXT, "expand": [0, 0, 16, 0]}
    said = await edited(http, 202, "/v1/jobs", json=body)

    assert (said["request"]["from_image"], said["request"]["with_mask"]) == (True, True)
    assert TEXT[:40] not in json.dumps(said)


async def test_a_key_of_another_mask_is_refused(http, engine):
    form, headers = {"prompt": "a hat"}, {"idempotency-key": "one"}
    for mask, status in ((masked(), 200), (masked(), 200), (255 - masked(), 400)):
        files = {**PART, "mask": ("mask.png", encode_mask(mask), "image/png")}
        await edited(http, status, data=form, files=files, headers=headers)

    assert len(engine.started) == 1


# ---- models that look at pictures


@pytest.fixture
def looking(engine):
    """A model that looks at four pictures."""
    engine.models = (replace(INFO, references=4),)
    return engine


def several(count):
    files = [encode(noise(30 + number, 20), format="png") for number in range(count)]
    return [("image[]", (f"{number}.png", file)) for number, file in enumerate(files)]


async def test_the_first_is_the_source_and_the_others_are_looked_at(http, looking):
    await edited(http, data={"prompt": "a hat"}, files=several(4))

    [request] = looking.started
    assert np.array_equal(decode(request.source), noise(30, 20))
    assert [decode(file).shape for file in request.references] == [
        (20, 31, 3), (20, 32, 3), (20, 33, 3)
    ]  # fmt: skip
    assert request.params.width is not None  # after the shape of the first


async def test_what_is_looked_at_keeps_its_shape_whatever_is_asked(http, looking):
    said = await edited(http, data={"prompt": "a hat", "size": "16x64"}, files=PART)

    [request] = looking.started
    assert np.array_equal(decode(request.source), ramp(64, 48))
    assert (request.params.width, request.params.height) == (16, 64)
    assert said["warnings"] == []


async def test_what_is_transparent_in_what_is_looked_at_is_no_mask(http, looking):
    said = await edited(http, data=AS_DRAWN, files=cut(LEFT))

    assert looking.started[0].mask is None
    assert said["warnings"] == []


async def test_with_a_strength_the_first_is_drawn_on(http, looking):
    form = {"prompt": "a hat", "size": "16x64", "strength": "0.5"}
    await edited(http, data=form, files=several(5))

    [request] = looking.started
    assert decode(request.source).shape == (64, 16, 3)
    assert len(request.references) == 4


async def test_ref_images_beside_an_image_are_looked_at(http, looking):
    files = [base64.b64encode(file).decode() for _, (_, file) in several(2)]
    body = {"prompt": "a hat", "image": TEXT, "ref_images": files, "mask": TEXT, "size": "64x48"}
    await edited(http, url="/v1/images/generations", json=body)

    [request] = looking.started
    assert np.array_equal(decode(request.source), ramp(64, 48))
    assert [decode(file).shape[1] for file in request.references] == [30, 31]


@pytest.mark.parametrize(
    ("files", "form", "field", "words"),
    [
        (several(5), {}, "image", "fake takes 4 pictures at most; got 5"),
        (several(17), {}, "image", "at most 16 may be given; got 17"),
        ([*several(2), ("image[]", ("x", b"no"))], {}, "image[2]", "image[2]: image must be"),
    ],
)
async def test_what_is_wrong_with_several_is_said(files, form, field, words, http, looking):
    said = await edited(http, 400, data={"prompt": "a hat", **form}, files=files)

    assert said["error"]["param"] == field
    assert words in said["error"]["message"]
    assert not looking.started


@pytest.mark.parametrize(
    ("facts", "url", "body", "field", "words"),
    [
        ({"fills": True}, EDITS, {"image": TEXT}, "mask", "fake fills a part of a picture"),
        ({"fills": True}, "/v1/images/generations", {}, "image", "give image and mask"),
        ({"needs_picture": True}, "/v1/images/generations", {}, "image", "draws after a picture"),
        ({"needs_picture": True}, "/v1/jobs", {}, "image", "draws after a picture"),
    ],
)
async def test_a_model_without_the_pictures_it_needs_says_so(
    facts, url, body, field, words, http, engine
):
    engine.models = (replace(INFO, **facts),)
    said = await edited(http, 400, url, json={"prompt": "a hat", **body})

    assert said["error"]["param"] == field
    assert words in said["error"]["message"]
    assert not engine.started


@pytest.mark.parametrize("body", [{"mask": TEXT}, {"expand": [0, 0, 8, 0]}])
async def test_a_model_that_fills_is_given_what_to_fill(body, http, engine):
    engine.models = (replace(INFO, fills=True, needs_picture=True),)
    await edited(http, json={"prompt": "a hat", "image": TEXT, **body})

    assert engine.started[0].mask is not None


@pytest.mark.parametrize(
    "content",
    [b"", b"--x", b"--x\r\n\r\n", b"--x\r\ncontent-disposition: form-data\r\n\r\n1\r\n--x--"],
)
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "multipart/form-data"])
async def test_a_form_that_is_none_is_refused(content, kind, http):
    answer = await http.post(EDITS, content=content, headers={"content-type": kind})

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("charset", ["undefined", "punycode", "unicode_escape", "latin-1"])
async def test_a_form_is_in_utf_8(charset, http):
    content = b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n\\ud800\r\n--x--'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = await http.post(EDITS, content=content, headers={"content-type": kind})

    assert answer.status_code == 415


@pytest.mark.parametrize(("path", "status"), [("/generate", 200), ("/submit-request", 202)])
async def test_one_picture_is_drawn_from_its_picture_and_mask(path, status, http, engine):
    mask = base64.b64encode(encode_mask(masked())).decode()
    body = {"prompt": "a hat", "image": TEXT, "mask": mask, "strength": 0.5}
    await edited(http, status, path, json=body)
    await begun(engine)

    [request] = engine.started
    size = request.params.height, request.params.width
    assert decode(request.source).shape[:2] == decode_mask(request.mask, size).shape == size
    assert (request.params.strength, size) == (0.5, (48, 80))


@pytest.mark.parametrize("path", ["/generate", "/submit-request"])
async def test_what_is_wrong_with_its_picture_is_said_there_too(path, http, engine):
    for field, body in (("mask", {"mask": TEXT}), ("image", {"image": "no"})):
        answer = await http.post(path, json={"prompt": "a hat", **body})

        assert answer.status_code == 422
        assert field in answer.text
    assert not engine.started


@pytest.mark.parametrize("field", ["image", "ref_images", "mask", "expand", "strength"])
async def test_a_batch_is_drawn_from_no_picture_and_refuses_one(field, http, engine):
    body = {"prompt": "a hat", field: 0.5 if field == "strength" else TEXT}
    answer = await http.post("/v1/batches/generate", json=body)

    assert answer.status_code in (400, 422)
    assert f"{field} is not served here" in answer.text
    assert not engine.started


async def test_a_body_of_millions_of_nothings_is_not_read(http):
    said = await edited(http, 400, content=b"[" + b"{}," * 60_000 + b"{}]", headers=JSON)

    assert "too many values" in said["error"]["message"]


async def test_bodies_together_hold_no_more_than_they_may(http, engine, monkeypatch):
    monkeypatch.setattr("fluxline.server.middleware.MOST_HELD_BYTES", 0)  # then it is 400 000
    first = asyncio.create_task(edited(http, json={"prompt": "hang", "image": TEXT, "x": PAD}))
    await begun(engine)
    said = await edited(http, 503, json={"prompt": "a hat", "image": TEXT, "x": PAD})
    engine.release()
    await first

    assert "too many large bodies" in said["error"]["message"]
    await edited(http, json={"prompt": "a hat", "image": TEXT, "x": PAD})


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_another_kind_of_body_is_refused(kind, http):
    answer = await http.post(EDITS, content=b"prompt=x", headers={"content-type": kind})

    assert answer.status_code == 415


async def test_a_client_that_repeats_a_form_makes_up_another_boundary_and_gets_one_job(
    http, engine
):
    form, headers = {"prompt": "a hat", "seed": "3"}, {"idempotency-key": "one"}
    first = await edited(http, data=form, files=PART, headers=headers)
    second = await edited(http, data=form, files=PART, headers=headers)
    other = {"image": ("upload", encode(noise(64, 48), format="png"), "image/png")}
    third = await edited(http, 400, data=form, files=other, headers=headers)

    assert first["id"] == second["id"]
    assert len(engine.started) == 1
    assert third["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("path", [EDITS, "/v1/images/generations", "/v1/jobs", IMG2IMG])
async def test_a_size_that_is_too_large_is_refused_before_anything_is_made_to_fit_it(
    path, http, monkeypatch
):
    for make in ("fit", "stretch"):
        monkeypatch.setattr(images, make, lambda *asked: pytest.fail(f"made to fit {asked[1:]}"))
    body = {"prompt": "a hat", "image": TEXT, "init_images": [TEXT]}
    answer = await http.post(path, json={**body, "width": 60_000, "height": 60_000})

    assert answer.status_code in (400, 422)
    assert "from 1 to 512; got 60000" in answer.text


@pytest.mark.parametrize("path", [EDITS, "/v1/images/generations", "/v1/jobs"])
async def test_a_body_with_a_picture_may_be_longer_and_not_endless(path, http):
    long = " " * 100_000
    said = await edited(http, url=path, status=400, json={"prompt": 1, "x": long, "image": TEXT})
    assert said["error"]["param"] == "prompt"
    await edited(http, 413, url=path, content=b" " * 500_000)


async def test_a_job_is_drawn_from_its_picture(http, engine):
    said = await edited(http, 202, "/v1/jobs", json={"prompt": "a hat", "image": TEXT, "n": 2})
    seen = await http.get(f"/v1/jobs/{said['id']}/events")

    assert decode(engine.started[0].source).shape == (48, 80, 3)
    assert "event: done" in seen.text


# ---- the AUTOMATIC1111 API


async def test_img2img_draws_from_its_first_image(http, engine):
    body = {
        "prompt": "a hat",
        "init_images": [f"data:image/png;base64,{TEXT}"],
        "denoising_strength": 0.4,
        "width": 64,
        "height": 64,
        "steps": 5,
        "mask": None,
        "mask_blur": 4,
        "inpaint_full_res": True,
        "resize_mode": 0,
    }
    said = await edited(http, url=IMG2IMG, json=body)

    [request] = engine.started
    assert request.params.strength == 0.4
    assert decode(request.source)[0, 0, 0] < 5  # stretched: its left edge is there
    assert (said["parameters"]["init_images"], len(said["images"])) == (None, 1)


async def test_resize_mode_1_crops_and_sent_images_are_echoed_on_demand(http, engine):
    body = {"prompt": "a hat", "init_images": [TEXT], "width": 64, "height": 64}
    body |= {"resize_mode": 1, "include_init_images": True}
    said = await edited(http, url=IMG2IMG, json=body)

    assert decode(engine.started[0].source)[32, 0, 0] > 20
    assert said["parameters"]["init_images"] == [TEXT]
    assert "its middle is used" in json.loads(said["info"])["warnings"][0]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (IMG2IMG, {}, "init_images is required"),
        (IMG2IMG, {"init_images": []}, "init_images is required"),
        (IMG2IMG, {"init_images": ["no"]}, "init_images must be"),
        (IMG2IMG, {"init_images": [TEXT, TEXT]}, "one picture may be given"),
        (IMG2IMG, {"init_images": [TEXT], "mask": "no"}, "mask must be"),
        (IMG2IMG, {"init_images": [TEXT], "mask": SQUARE}, "the shape of the picture"),
        (IMG2IMG, {"init_images": [TEXT], "mask": TEXT, "mask_blur": -1}, "mask_blur must be"),
        (IMG2IMG, {"init_images": [TEXT], "mask": TEXT, "inpainting_fill": 4}, "inpainting_fill"),
        (IMG2IMG, {"init_images": [TEXT], "expand": [8, 0, 0, 0]}, "expand is not served here"),
        (IMG2IMG, {"init_images": [TEXT], "resize_mode": 3}, "3 is not served"),
        ("/sdapi/v1/txt2img", {"mask": TEXT}, "mask needs the image"),
        (IMG2IMG, {"init_images": [TEXT], "denoising_strength": 0}, "above 0"),
        ("/sdapi/v1/txt2img", {"init_images": [TEXT]}, "go to /sdapi/v1/img2img"),
    ],
)
async def test_what_img2img_cannot_do_is_refused_by_its_name(path, body, words, http):
    said = await edited(http, 422, path, json={"prompt": "a hat", **body})

    assert words in said["detail"]


async def painted(http, engine, **body):
    """What img2img draws on, and its mask, of a picture that is painted on in the left half."""
    clear, file = np.dstack([ramp(64, 48), masked()]), io.BytesIO()
    Image.fromarray(clear).save(file, "png")
    mask = base64.b64encode(file.getvalue()).decode()
    body = {"prompt": "a hat", "init_images": [TEXT], "mask": mask, "width": 64, **body}
    said = await edited(http, url=IMG2IMG, json={"height": 48, **body})
    request = engine.started[-1]
    size = request.params.height, request.params.width
    mask = decode_mask(request.mask, size).astype(int)
    return said, request, decode(request.source), mask


async def test_what_is_painted_is_redrawn_softly_and_begins_as_what_is_around_it(http, engine):
    said, request, source, mask = await painted(http, engine)

    assert request.params.strength == 0.75
    assert (mask[20, 2], mask[20, 60]) == (255, 0)
    assert 90 < mask[20, 31] < 165  # blurred by 4 px
    assert np.array_equal(source[:, 40:], ramp(64, 48)[:, 40:])
    assert source[20, :20, 0].min() > 100  # the ramp is dark there
    assert said["parameters"]["mask"] is None


async def test_it_may_begin_as_it_is_be_hard_and_be_the_other_half(http, engine):
    asked = {"inpainting_fill": 1, "mask_blur": 0, "inpainting_mask_invert": 1}
    said, _request, source, mask = await painted(http, engine, **asked)

    assert np.array_equal(mask, 255 - masked())
    assert np.array_equal(source, ramp(64, 48))
    assert not [line for line in json.loads(said["info"])["warnings"] if "served" in line]


async def test_resize_mode_2_has_the_whole_picture_and_its_edge_around(http, engine):
    asked = {"resize_mode": 2, "height": 96, "inpainting_fill": 1, "mask_blur_x": 0}
    _, _, source, mask = await painted(http, engine, **asked)

    assert np.array_equal(source[24:72], ramp(64, 48))
    assert (source[:24] == source[:1]).all()
    assert (mask[48, :32] == 255).all()


@pytest.mark.parametrize("asked", [{"inpainting_fill": 2}, {"inpaint_full_res": True}])
async def test_what_of_a_mask_is_not_done_is_said(asked, http, engine):
    said, *_ = await painted(http, engine, **asked)

    [name] = asked
    assert any(name in line for line in json.loads(said["info"])["warnings"])


async def test_txt2img_takes_no_strength_from_clients_that_send_it_always(http, engine):
    body = {"prompt": "a hat", "denoising_strength": 0.7}
    await edited(http, url="/sdapi/v1/txt2img", json=body)

    assert engine.started[0].params.strength is None
