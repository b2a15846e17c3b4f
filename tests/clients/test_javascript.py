"""JavaScript's clients: the official one, and Vercel's AI SDK with both of its providers."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.picture import opened

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run installs

SQUARE, WIDE = (128, 128), (160, 96)


@pytest.fixture(scope="module")
def official(node):
    return node("openai.mjs")


@pytest.fixture(scope="module")
def ai(node):
    return node("ai.mjs")


def test_the_official_client_draws(official):
    pictures = [opened(image) for image in official["images"]]

    assert [(p.size, p.format) for p in pictures] == [(SQUARE, "WEBP")] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert official["seeds"] == [7, 8]
    assert official["usage"]["output_tokens"] == 128
    assert official["requestId"].startswith("req_")
    assert official["models"] == ["mini"]


def test_the_official_client_streams_what_it_draws(official, stranger):
    *partials, last = official["events"]

    assert [event["type"] for event in partials] == ["image_generation.partial_image"] * 2
    assert [event["index"] for event in partials] == [0, 1]
    assert all(opened(event["image"]).format == "PNG" for event in partials)
    assert last["type"] == "image_generation.completed"
    linked = opened(stranger.get(official["link"]).content)
    assert opened(last["image"]).tobytes() == linked.tobytes()


@pytest.mark.parametrize(
    ("field", "name", "status", "code"),
    [
        ("n", "BadRequestError", 400, "invalid_value"),
        ("model", "NotFoundError", 404, "model_not_found"),
        ("image", "BadRequestError", 400, "unsupported_parameter"),
        ("key", "AuthenticationError", 401, "invalid_api_key"),
    ],
)
def test_the_official_client_knows_what_is_wrong(field, name, status, code, official):
    error = official["failures"][field]

    assert (error["name"], error["status"], error["code"]) == (name, status, code)
    assert error["param"] == (None if field == "key" else field)
    assert error["requestID"].startswith("req_")


@pytest.mark.parametrize("where", ["client", "request"])  # only one of them is told the server
def test_its_own_retry_follows_the_drawing_that_it_did_not_wait_for(where, node, stopped, http):
    prompt = f"a fox that takes its time, as the {where} says"
    with ThreadPoolExecutor() as pool:
        with stopped():
            asked = pool.submit(node, "retry.mjs", prompt, "8000", where)
            time.sleep(14)  # it has hung up by then, and asked again
        answer = asked.result()

    jobs = http.get("/v1/jobs", params={"limit": 200}).json()["data"]
    told = [(j["status"], j["attempts"]) for j in jobs if j["request"]["prompt"] == prompt]
    assert opened(answer["image"]).size == SQUARE
    assert answer["asked"] > 1
    assert told == [("done", 1)]


@pytest.mark.parametrize(
    ("provider", "kind"),
    [("openai", "PNG"), ("openaiByName", "PNG"), ("compatible", "WEBP")],
)
def test_the_ai_sdk_draws(provider, kind, ai):
    drawn = ai[provider]

    pictures = [opened(image["base64"]) for image in drawn["images"]]
    assert [(p.size, p.format) for p in pictures] == [(WIDE, kind)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert {image["mediaType"] for image in drawn["images"]} == {f"image/{kind.lower()}"}
    assert drawn["warnings"] == []


@pytest.mark.parametrize(
    ("field", "status", "said"),
    [
        ("size", 400, "from 1 to 2048; got 4096"),
        ("model", 404, "model 'flux-pro' is not served here"),
        ("image", 400, "editing is not served here yet"),
    ],
)
def test_the_ai_sdk_tells_what_is_wrong(field, status, said, ai):
    error = ai["failures"][field]

    assert (error["statusCode"], error["isRetryable"]) == (status, False)
    assert said in error["message"]
