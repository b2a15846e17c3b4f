"""The official client for Python, as a program uses it."""

import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from PIL import Image

from tests.clients.conftest import KEY
from tests.clients.picture import distance, opened

pytestmark = pytest.mark.slow

FOX = {"prompt": "a red fox", "size": "128x128"}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        yield client


def seeded(seed, **more):
    return {"extra_body": {"seed": seed, **more}}


def test_pictures_are_drawn_as_asked(client):
    answer = client.images.generate(
        model="gpt-image-1",
        prompt="a red fox",
        n=2,
        size="160x96",
        quality="low",
        output_format="webp",
        **seeded(7),
    )

    pictures = [opened(datum.b64_json) for datum in answer.data]
    assert [(p.size, p.format) for p in pictures] == [((160, 96), "WEBP")] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert [datum.model_extra["seed"] for datum in answer.data] == [7, 8]
    assert (answer.size, answer.quality, answer.output_format) == ("160x96", "low", "webp")
    assert answer.usage.output_tokens == 2 * (160 // 16) * (96 // 16)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer._request_id.startswith("req_")


def test_a_link_is_answered_and_leads_to_the_picture(client, stranger):
    linked = client.images.generate(**FOX, response_format="url", **seeded(7))
    carried = client.images.generate(**FOX, **seeded(7))

    link = stranger.get(linked.data[0].url)
    assert link.headers["content-type"] == "image/png"
    assert opened(link.content).tobytes() == opened(carried.data[0].b64_json).tobytes()


async def test_requests_of_one_program_are_drawn_together(async_client):
    work = [async_client.images.generate(**FOX, **seeded(seed)) for seed in (1, 2, 3)]
    answers = await asyncio.gather(*work)

    pictures = {opened(answer.data[0].b64_json).tobytes() for answer in answers}
    assert len(pictures) == 3


def test_a_stream_shows_the_picture_on_its_way(client):
    whole = client.images.generate(**FOX, **seeded(7)).data[0].b64_json
    stream = client.images.generate(**FOX, stream=True, partial_images=2, **seeded(7))

    *partials, last = stream

    assert [event.type for event in partials] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partials] == [0, 1]
    assert all(opened(event.b64_json).format == "PNG" for event in partials)
    assert (last.type, last.size) == ("image_generation.completed", "128x128")
    assert opened(last.b64_json).tobytes() == opened(whole).tobytes()
    assert last.usage.output_tokens == 64


async def test_a_stream_can_be_read_by_the_async_client(async_client):
    stream = await async_client.images.generate(**FOX, n=2, stream=True, partial_images=1)

    kinds = [event.type.rpartition(".")[2] async for event in stream]
    assert sorted(kinds) == ["completed"] * 2 + ["partial_image"] * 2


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"n": 99}, openai.BadRequestError, "invalid_value", "n"),
        ({"size": "huge"}, openai.BadRequestError, "invalid_value", "size"),
        ({"size": "4096x4096"}, openai.BadRequestError, "invalid_value", "size"),
        ({"prompt": " "}, openai.BadRequestError, "invalid_value", "prompt"),
        ({"prompt": "x" * 32_001}, openai.BadRequestError, "prompt_too_long", "prompt"),
        (
            {"background": "transparent"},
            openai.BadRequestError,
            "unsupported_parameter",
            "background",
        ),
        ({"model": "flux-pro"}, openai.NotFoundError, "model_not_found", "model"),
        ({"stream": True, "n": 0}, openai.BadRequestError, "invalid_value", "n"),
        ({"extra_body": {"steps": 51}}, openai.BadRequestError, "invalid_value", "steps"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:40],
)
def test_an_error_is_of_the_right_type_and_says_the_field(fields, kind, code, param, client):
    with pytest.raises(kind) as raised:
        client.images.generate(**{**FOX, **fields})

    error = raised.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.request_id.startswith("req_")
    assert param in error.message


def test_a_wrong_key_is_an_authentication_error(client):
    with pytest.raises(openai.AuthenticationError) as raised:
        client.with_options(api_key="client3").images.generate(**FOX)

    assert raised.value.code == "invalid_api_key"


def test_models_are_listed_and_one_is_told_of(client):
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").owned_by == "fluxline"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("flux-pro")


def test_the_raw_answer_has_the_headers(client):
    raw = client.images.with_raw_response.generate(**FOX)

    assert raw.headers["x-request-id"].startswith("req_")
    assert int(raw.headers["openai-processing-ms"]) > 0
    assert raw.headers["openai-version"] == "2020-10-01"
    assert opened(raw.parse().data[0].b64_json).size == (128, 128)


# ---- edits

HAT = {"prompt": "a red fox on a blue background", "size": "128x128"}
HANDED = {
    "bytes": lambda file: file,
    "a stream": io.BytesIO,
    "a tuple": lambda file: ("fox.png", file, "image/png"),
    "a list of one": lambda file: [("fox.png", file)],
}


@pytest.fixture(scope="module")
def fox(client):
    """The file of a picture to start from."""
    return base64.b64decode(client.images.generate(**FOX, **seeded(7)).data[0].b64_json)


def edited(client, **asked):
    return opened(client.images.edit(**{**HAT, **asked}).data[0].b64_json)


@pytest.fixture(scope="module")
def wanted(client, fox):
    return edited(client, image=fox, **seeded(3, strength=0.5))


@pytest.mark.parametrize("hand", HANDED.values(), ids=HANDED.keys())
def test_an_edit_is_drawn_however_its_picture_is_handed_over(hand, client, fox, wanted):
    picture = edited(client, image=hand(fox), **seeded(3, strength=0.5))

    assert picture.tobytes() == wanted.tobytes()


def test_an_edit_is_another_picture_and_the_nearer_to_its_own_the_weaker_it_is(client, fox):
    drawn = [edited(client, image=fox, **seeded(3, strength=how)) for how in (0.2, 0.5, 0.9)]

    apart = [distance(opened(fox), picture) for picture in drawn]
    assert 0 < apart[0] < apart[1] < apart[2]


def test_the_size_of_an_edit_is_as_asked_or_follows_its_picture(client):
    wide = client.images.generate(prompt="a red fox", size="160x96", **seeded(7))
    file = base64.b64decode(wide.data[0].b64_json)

    asked = client.images.edit(image=file, prompt="a hat", size="64x96", n=2)
    auto = client.images.edit(image=file, prompt="a hat", size="auto")

    assert [opened(datum.b64_json).size for datum in asked.data] == [(64, 96)] * 2
    assert asked.size == "64x96"
    assert any("its middle is used" in line for line in asked.model_extra["warnings"])
    assert opened(auto.data[0].b64_json).size == (160, 96)
    assert auto.model_extra["warnings"] == []


def test_the_usage_of_an_edit_counts_the_picture_that_was_seen(client, fox):
    usage = client.images.edit(image=fox, **HAT).usage

    assert usage.input_tokens_details.image_tokens == usage.output_tokens == 64
    assert usage.input_tokens == usage.input_tokens_details.text_tokens + 64


def test_a_stream_shows_the_edit_on_its_way(client, fox, wanted):
    asked = {"stream": True, "partial_images": 2, **seeded(3, strength=0.5)}

    *partials, last = client.images.edit(image=fox, **HAT, **asked)

    assert [event.type for event in partials] == ["image_edit.partial_image"] * 2
    assert all(opened(event.b64_json).format == "PNG" for event in partials)
    assert last.type == "image_edit.completed"
    assert opened(last.b64_json).tobytes() == wanted.tobytes()
    assert last.usage.input_tokens_details.image_tokens == 64


async def test_an_edit_is_drawn_for_the_async_client(async_client, fox, wanted):
    answer = await async_client.images.edit(image=fox, **HAT, **seeded(3, strength=0.5))

    assert opened(answer.data[0].b64_json).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"image": [b"1", b"2"]}, "unsupported_parameter", "image"),
        ({"image": [b"1"] * 17}, "invalid_value", "image"),
        ({"image": b"\x89PNG\r\n\x1a\n"}, "invalid_value", "image"),
        ({"image": b""}, "invalid_value", "image"),
        ({"mask": b"\x89PNG"}, "invalid_value", "mask"),
        ({"mask": b""}, "invalid_value", "mask"),
        ({"extra_body": {"expand": [1, 2]}}, "invalid_value", "expand"),
        ({"markup": b"\x89PNG"}, "unsupported_parameter", "markup"),
        ({"prompt": " "}, "invalid_value", "prompt"),
        ({"extra_body": {"strength": 0}}, "invalid_value", "strength"),
        ({"extra_body": {"strength": 1.5}}, "invalid_value", "strength"),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_edit_is_said_by_its_field(fields, code, param, client, fox):
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.edit(**{**HAT, "image": fox, **fields})

    assert (raised.value.code, raised.value.param) == (code, param)
    assert param in raised.value.message


def test_what_is_transparent_in_a_mask_is_redrawn_and_the_rest_kept(client, fox):
    was, file = np.asarray(opened(fox)), io.BytesIO()
    alpha = np.full(was.shape[:2], 255, np.uint8)
    alpha[:, 64:] = 0
    Image.fromarray(np.dstack([was, alpha])).save(file, "png")
    picture = np.asarray(edited(client, image=[fox], mask=file.getvalue(), **seeded(3)))

    assert np.array_equal(picture[:, :64], was[:, :64])
    assert np.abs(picture[:, 64:].astype(int) - was[:, 64:]).mean() > 5


def test_what_is_beside_a_picture_is_drawn(client, fox):
    asked = {"image": fox, "prompt": "a red fox", "extra_body": {"expand": [32, 0, 64, 0]}}
    picture = np.asarray(opened(client.images.edit(**asked).data[0].b64_json))

    assert picture.shape == (128, 224, 3)
    assert np.array_equal(picture[:, 48:144], np.asarray(opened(fox))[:, 16:112])


def test_variations_are_not_served(client, fox):
    with pytest.warns(DeprecationWarning, match="deprecated"), pytest.raises(openai.NotFoundError):
        client.images.create_variation(image=fox)


# ---- patience


def jobs_of(http, prompt):
    jobs = http.get("/v1/jobs", params={"limit": 200}).json()["data"]
    return [job for job in jobs if job["request"]["prompt"] == prompt]


def test_a_clients_own_retry_follows_the_drawing_that_it_did_not_wait_for(client, stopped, http):
    prompt = "a fox that takes its time"
    patient = client.with_options(timeout=8, max_retries=3)
    with ThreadPoolExecutor() as pool:
        with stopped():
            ask = patient.images.with_raw_response.generate
            asked = pool.submit(ask, prompt=prompt, size="128x128")
            time.sleep(10)  # it has hung up by then, and asked again
        answer = asked.result()

    assert opened(answer.parse().data[0].b64_json).size == (128, 128)
    assert answer.retries_taken > 0
    [job] = jobs_of(http, prompt)
    assert (job["status"], job["attempts"]) == ("done", 1)
