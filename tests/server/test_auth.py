"""Keys: every route but the public ones asks for one, wherever a client puts it."""

import base64
import logging

import pytest

from fluxline.errors import NotReady
from fluxline.jobs import KeyRing, Scope
from fluxline.server.app import create_app
from fluxline.server.auth import METRICS, PUBLIC, SIGNED
from tests.server.conftest import LIMITS

URL, JOBS = "/v1/images/generations", "/v1/jobs"
FOX = {"prompt": "a fox"}


@pytest.fixture
def ring(database):
    return KeyRing(database, given=["from-the-environment"])


@pytest.fixture
def app(service, links, webhooks, uploads, ring):
    return create_app(service, links, webhooks, uploads, max_n=4, **LIMITS, ring=ring)


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


def basic(text):
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def addresses(app):
    """Every documented method and path, and the aliases that are not documented."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{", "").replace("}", "")
    yield "POST", "/images/generations"
    yield "POST", "/openai/deployments/x/images/generations"
    yield "GET", "/openapi.json"
    yield "GET", "/nowhere"


async def test_every_route_but_the_public_ones_refuses_who_has_no_key(app, http):
    tried = 0
    for method, path in addresses(app):
        if path in PUBLIC | METRICS or path.startswith(SIGNED):
            continue
        for headers in ({}, bearer("wrong"), {"api-key": ""}, basic("a:wrong"), basic("é")):
            answer = await http.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            tried += 1
    assert tried > 50


async def test_what_is_public_asks_for_nothing(app, http):
    for path in PUBLIC | METRICS:
        assert (await http.get(path)).status_code == 200
    assert (await http.get("/files/x")).status_code == 403
    assert (await http.options(URL)).status_code == 204


@pytest.mark.parametrize(
    "headers",
    [
        bearer("from-the-environment"),
        {"authorization": "bearer  from-the-environment"},
        {"api-key": "from-the-environment"},
        {"x-api-key": "from-the-environment"},
        {"x-key": "from-the-environment"},
        basic("anybody:from-the-environment"),
    ],
)
async def test_a_key_is_good_wherever_a_client_puts_it(headers, http):
    assert (await http.post(URL, json=FOX, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Basic %%%"},
        {"authorization": b"Basic \xe9"},
        {"authorization": "Basic"},
        {"authorization": "Bearer " + "x" * 20_000},
        {"authorization": "Bearer flx_" + "a" * 12 + "_"},
        {"authorization": b"Bearer \xff\xfe"},
        {"api-key": "flx__"},
    ],
)
async def test_nonsense_is_no_key(headers, http):
    assert (await http.post(URL, json=FOX, headers=headers)).status_code == 401


async def test_a_wrong_key_is_refused_by_the_words_that_clients_look_for(http):
    answer = await http.post(URL, json=FOX, headers=bearer("wrong"))

    error = answer.json()["error"]
    assert error["message"].startswith("Incorrect API key provided")
    assert error["code"] == "invalid_api_key"


async def test_a_revoked_key_is_good_no_more(http, ring):
    key, secret = ring.create("ann")
    before = await http.post(URL, json=FOX, headers=bearer(secret))
    ring.revoke(key.id)
    after = await http.post(URL, json=FOX, headers=bearer(secret))

    assert (before.status_code, after.status_code) == (200, 401)


async def test_jobs_of_others_are_not_there_but_for_an_admin(http, ring):
    _, ann = ring.create("ann")
    _, bob = ring.create("bob")
    _, eve = ring.create("eve", scopes=[Scope.GENERATE, Scope.ADMIN])
    job_id = (await http.post(JOBS, json=FOX, headers=bearer(ann))).json()["id"]

    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")):
        answer = await http.request(method, f"{JOBS}/{job_id}{path}", headers=bearer(bob))
        assert answer.status_code == 404
    assert (await http.get(JOBS, headers=bearer(bob))).json()["data"] == []
    assert len((await http.get(JOBS, headers=bearer(eve))).json()["data"]) == 1
    assert (await http.get(f"{JOBS}/{job_id}", headers=bearer(eve))).status_code == 200


async def test_two_owners_may_use_the_same_idempotency_key(http, ring, engine):
    for name in ("ann", "bob"):
        headers = {**bearer(ring.create(name)[1]), "idempotency-key": "k"}
        assert (await http.post(URL, json=FOX, headers=headers)).status_code == 200
    assert len({request.owner for request in engine.started}) == 2


async def test_a_key_has_no_more_open_than_it_may_and_its_priority_counts(http, ring, engine):
    _, secret = ring.create("ann", most_open=1, priority=5)
    first = await http.post(JOBS, json={"prompt": "hang"}, headers=bearer(secret))
    second = await http.post(JOBS, json=FOX, headers=bearer(secret))

    assert (first.status_code, second.status_code) == (202, 429)
    assert "this key" in second.json()["error"]["message"]
    await http.post(f"{JOBS}/{first.json()['id']}/cancel", headers=bearer(secret))
    assert engine.started[0].priority == 5


async def test_a_key_draws_no_more_a_minute_than_its_share(http, ring):
    _, secret = ring.create("ann", rate=64 * 64 * 3)  # less than one picture
    codes = [(await http.post(URL, json=FOX, headers=bearer(secret))).status_code for _ in "ab"]

    assert codes == [200, 429]


async def test_no_key_reaches_the_log(http, ring, caplog):
    caplog.set_level(logging.DEBUG)
    _, secret = ring.create("ann")
    for headers in (bearer(secret), {"api-key": secret + "x"}):
        await http.post(URL, json=FOX, headers=headers)

    assert secret not in caplog.text


async def test_a_database_that_is_away_is_no_crash(http, ring):
    def away(presented):
        raise NotReady("the job database cannot be read now", retry_after_s=5)

    ring.check = away
    answer = await http.get(JOBS, headers=bearer("from-the-environment"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
