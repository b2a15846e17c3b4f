"""Pages of strangers stay outside at every door; named pages may come in."""

import httpx
import pytest

from fluxline.images import encode
from fluxline.server.app import create_app
from tests.images.pictures import ramp
from tests.server.conftest import LIMITS

URL, PAGE = "/v1/images/generations", "https://studio.example.org"


async def asked(http, **headers):
    return await http.post(URL, json={"prompt": "a fox"}, headers=headers)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"origin": PAGE}, 403, "foreign_origin"),
        ({"origin": "null"}, 403, "foreign_origin"),
        (
            {"origin": "http://evil.example:8080", "host": "evil.example:8080"},
            403,
            "foreign_origin",
        ),
        ({"host": "evil.example:8080"}, 421, "foreign_host"),
        ({"host": ""}, 421, "foreign_host"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/health", "/sdapi/v1/progress", "/no/such/route"])
async def test_a_stranger_is_turned_away_before_all_else(headers, status, code, path, http, engine):
    read = await http.get(path, headers=headers)
    drawn = await asked(http, **headers)

    assert (read.status_code, drawn.status_code) == (status, status)
    assert read.json()["error"]["code"] == code
    assert engine.started == []


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/jobs"])
@pytest.mark.parametrize("origin", [PAGE, "null"])
async def test_a_strangers_form_is_turned_away_where_forms_are_taken(origin, path, http, engine):
    """A browser sends it without asking, so that only its origin stands against it."""
    file = encode(ramp(64, 48), format="png")
    form = {"data": {"prompt": "a hat"}, "files": {"image": file}}
    answer = await http.post(path, **form, headers={"origin": origin})

    assert answer.status_code == 403
    assert engine.started == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"origin": "http://192.168.1.5:8080", "host": "192.168.1.5:8080"},
        {"host": "[::1]:8080"},
    ],
)
async def test_a_page_of_this_machine_or_this_server_comes_in(headers, http):
    assert (await asked(http, **headers)).status_code == 200


@pytest.fixture
async def opened(service, links, webhooks, uploads):
    app = create_app(service, links, webhooks, uploads, max_n=4, **LIMITS, pages=[PAGE])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


async def test_a_named_page_is_let_in_and_may_read_the_answer(opened):
    wants = {"access-control-request-method": "POST", "access-control-request-headers": "api-key"}
    before = await opened.options(URL, headers={"origin": PAGE, **wants})
    answer = await asked(opened, origin=PAGE)
    other = await asked(opened, origin="https://evil.example")

    assert before.headers["access-control-allow-origin"] == PAGE
    assert "api-key" in before.headers["access-control-allow-headers"]
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers
