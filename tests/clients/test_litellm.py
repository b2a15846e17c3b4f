"""LiteLLM as a library, pointed at a server of one's own."""

import pytest

from tests.clients.picture import distance, opened

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run installs

SIZE = (160, 96)


@pytest.fixture(scope="module")
def said(litellm):
    return litellm("images.py")


def test_litellm_draws(said):
    pictures = [opened(image) for image in said["images"]]

    assert [p.size for p in pictures] == [SIZE, SIZE]
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert said["usage"] == 24 + 2 * 60


def test_litellm_passes_on_what_only_we_know(said):
    first, again = (opened(image).tobytes() for image in said["seeded"])

    assert first == again == opened(said["by_vllms_name"]).tobytes()


def test_litellm_draws_from_a_coroutine(said):
    assert len({opened(image).tobytes() for image in said["together"]}) == 2


def test_litellm_edits_and_passes_the_strength_on(said):
    source, weakly, strongly = (opened(image) for image in (said["images"][0], *said["edited"]))

    assert weakly.size == strongly.size == SIZE
    assert 0 < distance(source, weakly) < distance(source, strongly)


@pytest.mark.parametrize(
    ("field", "name", "status", "message"),
    [
        ("n", "BadRequestError", 400, "n must be an integer from 1 to 10; got 99"),
        ("model", "NotFoundError", 404, "model 'flux-pro' is not served here"),
        ("key", "AuthenticationError", 401, "Incorrect API key provided"),
        ("image", "BadRequestError", 400, "image must be a whole PNG"),
        ("images", "BadRequestError", 400, "mini takes one picture; got 2"),
    ],
)
def test_litellm_raises_the_right_error(field, name, status, message, said):
    error = said["failures"][field]

    assert (error["name"], error["status"]) == (name, status)
    assert message in error["message"]
