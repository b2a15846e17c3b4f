"""Webhooks: told when it is over, signed, told again when it was not heard."""

import asyncio
import base64
import hashlib
import hmac
import json
import re

import pytest

from fluxline.jobs import WebhookStore
from fluxline.server.dialects.webhooks import Webhooks
from fluxline.server.outside import Outside
from tests.server.conftest import Listener
from tests.server.dialects.test_jobs import asked, ended

SECRET = "whsec_" + base64.b64encode(b"of the caller").decode()


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def listener():
    listener = Listener()
    server = await asyncio.start_server(listener.hear, "127.0.0.1", 0)
    listener.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/told"
    yield listener
    server.close()


@pytest.fixture
def webhooks(database, links, clock):
    return Webhooks(WebhookStore(database, clock=clock), links, Outside("127.0.0.1"))


async def test_the_caller_is_told_what_the_job_says(http, webhooks, listener):
    said = await asked(http, webhook_url=listener.url, webhook_secret=SECRET)
    job = await ended(http, said["id"])
    assert await webhooks.tell() == 1
    assert await webhooks.tell() == 0

    [(head, body)] = listener.heard
    headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:-2])
    told = json.loads(body)
    assert (told["type"], told["data"]["id"]) == ("job.done", job["id"])
    picture = await http.get(told["data"]["images"][0]["url"])
    assert hashlib.sha256(picture.content).hexdigest() == told["data"]["images"][0]["sha256"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(b"of the caller", signed, hashlib.sha256).digest()
    sent = next(line for line in head.decode().split("\r\n") if "signature" in line.lower())
    assert sent.split(": ")[1] == "v1," + base64.b64encode(digest).decode()
    seen = (await http.get(f"/v1/jobs/{job['id']}")).json()["webhook"]
    assert (seen["url"], seen["attempts"], seen["error"]) == (listener.url, 1, None)
    assert seen["delivered_at"] is not None
    assert "secret" not in seen


async def test_without_a_secret_nothing_is_signed(http, webhooks, listener):
    await ended(http, (await asked(http, webhook_url=listener.url))["id"])
    await webhooks.tell()
    assert b"webhook-signature" not in listener.heard[0][0].lower()


async def test_who_did_not_hear_is_told_again_with_the_same_id(http, webhooks, listener, clock):
    listener.answer = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
    said = await asked(http, webhook_url=listener.url)
    await ended(http, said["id"])
    await webhooks.tell()
    seen = (await http.get(f"/v1/jobs/{said['id']}")).json()["webhook"]
    listener.answer = b"HTTP/1.1 204 Yes\r\n\r\n"
    clock.now += 15
    await webhooks.tell()

    ids = {re.search(rb"webhook-id: \S+", head.lower())[0] for head, _ in listener.heard}
    assert (seen["error"], seen["delivered_at"]) == ("answered 500", None)
    assert (len(listener.heard), len(ids)) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"webhook_url": "http://127.0.0.2/"}, "webhook_url"),
        ({"webhook_url": 7}, "webhook_url"),
        ({"webhook_secret": "x"}, "webhook_secret"),
        ({"webhook_url": "http://127.0.0.1/", "webhook_secret": ""}, "webhook_secret"),
        ({"webhook_url": "http://127.0.0.1/", "webhook_secret": "whsec_?"}, "webhook_secret"),
        ({"webhook_url": "http://127.0.0.1/", "webhook_secret": "x" * 257}, "webhook_secret"),
    ],
)
async def test_a_wrong_webhook_is_refused_by_its_name(fields, name, http, engine):
    said = await asked(http, status=400, **fields)
    assert said["error"]["param"] == name
    assert engine.started == []
