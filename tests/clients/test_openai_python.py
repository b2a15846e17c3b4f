"""The official client for Python, as a program uses it."""

import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.clients.conftest import KEY
from tests.clients.picture import opened

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


@pytest.mark.parametrize("how", ["one", "many"])
def test_editing_is_refused_by_its_field(how, client):
    file = io.BytesIO(base64.b64decode(client.images.generate(**FOX).data[0].b64_json))
    file.name = "fox.png"
    image = file if how == "one" else [file, ("other.png", b"\x89PNG")]

    with pytest.raises(openai.BadRequestError) as raised:
        client.images.edit(image=image, prompt="a hat")

    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "image")
    assert "not served here yet" in raised.value.message


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
