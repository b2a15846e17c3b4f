"""JavaScript's clients: the official one, and Vercel's AI SDK with both of its providers."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.picture import distance, opened

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


def test_the_official_client_edits(official):
    source, edited = (opened(image) for image in (official["images"][0], official["edited"]))

    assert (edited.size, edited.format) == (SQUARE, "PNG")
    assert distance(source, edited) > 1
    assert opened(official["listed"]).tobytes() == edited.tobytes()
    assert official["editUsage"]["input_tokens_details"]["image_tokens"] == 64


def test_the_official_client_streams_an_edit(official):
    partial, last = official["editEvents"]

    assert (partial["type"], last["type"]) == ("image_edit.partial_image", "image_edit.completed")
    assert opened(last["image"]).tobytes() == opened(official["edited"]).tobytes()


@pytest.mark.parametrize(
    ("case", "name", "status", "code", "param"),
    [
        ("n", "BadRequestError", 400, "invalid_value", "n"),
        ("model", "NotFoundError", 404, "model_not_found", "model"),
        ("image", "BadRequestError", 400, "invalid_value", "image"),
        ("images", "BadRequestError", 400, "unsupported_parameter", "image"),
        ("key", "AuthenticationError", 401, "invalid_api_key", None),
    ],
)
def test_the_official_client_knows_what_is_wrong(case, name, status, code, param, official):
    error = official["failures"][case]

    assert (error["name"], error["status"], error["code"]) == (name, status, code)
    assert error["param"] == param
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


def test_the_ai_sdk_edits_with_both_providers_and_one_passes_the_strength_on(ai):
    source = opened(ai["source"])
    edited = {name: opened(drawn["images"][0]["base64"]) for name, drawn in ai["edited"].items()}

    apart = {name: distance(source, picture) for name, picture in edited.items()}
    assert {picture.size for picture in edited.values()} == {WIDE}
    assert 0 < apart["weakly"] < apart["strongly"]
    assert apart["openai"] > 0
    assert [drawn["warnings"] for drawn in ai["edited"].values()] == [[]] * 3


@pytest.mark.parametrize(
    ("field", "status", "said"),
    [
        ("size", 400, "from 1 to 2048; got 4096"),
        ("model", 404, "model 'flux-pro' is not served here"),
        ("image", 400, "image must be a whole PNG"),
        ("images", 400, "mini takes one picture; got 2"),
    ],
)
def test_the_ai_sdk_tells_what_is_wrong(field, status, said, ai):
    error = ai["failures"][field]

    assert (error["statusCode"], error["isRetryable"]) == (status, False)
    assert said in error["message"]
