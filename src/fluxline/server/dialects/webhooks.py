"""Tells callers that their jobs are over, signed as standardwebhooks.com has it.

What is told is what `GET /v1/jobs/{id}` says then. It may be told twice, with the same id.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from datetime import UTC, datetime

import msgspec
from fastapi import Request

from fluxline.errors import InvalidParams, NotReady, StorageError
from fluxline.jobs import JobRow, NewWebhook, Webhook, WebhookStore
from fluxline.server.dialects import jobs
from fluxline.server.fields import Fields
from fluxline.server.links import Links
from fluxline.server.outside import Outside, Unreachable

LOOK_S = 1.0  # between two looks for jobs that are over
AGAIN_S = (15.0, 60.0, 300.0, 1800.0, 7200.0, 21_600.0, 43_200.0)  # until the next attempt
AT_ONCE = 16
LONGEST_SECRET = 256
PREFIX = "whsec_"  # what comes after it is base64

_log = logging.getLogger(__name__)


class Webhooks:
    """Reads where a caller wants to be told, and tells them. Lives on one event loop."""

    def __init__(self, store: WebhookStore, links: Links, outside: Outside) -> None:
        self._store, self._links, self._outside = store, links, outside

    def read(self, fields: Fields, request: Request) -> NewWebhook | None:
        """Read `webhook_url` and `webhook_secret`. Raises InvalidParams naming the field."""
        url, secret = fields.text("webhook_url"), fields.text("webhook_secret")
        if url is None:
            if secret is not None:
                message = "webhook_secret needs a webhook_url"
                raise InvalidParams(message, field="webhook_secret")
            return None
        self._outside.check(url, "webhook_url")
        if secret is not None:
            _key(secret)
        return NewWebhook(url=url, secret=secret, base_url=str(request.base_url))

    async def of(self, job_id: str) -> Webhook | None:
        """The webhook of a job. Raises NotReady."""
        return await asyncio.to_thread(self._store.of, job_id)

    async def run(self) -> None:
        """Tell for ever, if anybody may be told."""
        while not self._outside.is_closed:
            try:
                count = await self.tell()
            except NotReady as exc:
                _log.warning("webhooks wait: %s", exc.message)
                count = 0
            except Exception:  # noqa: BLE001 - a fault of ours must not end the loop
                _log.exception("unexpected failure of webhooks")
                count = 0
            if count < AT_ONCE:
                await asyncio.sleep(LOOK_S)

    async def tell(self) -> int:
        """Tell those who must be told now, and return how many they were. Raises NotReady."""
        due = await asyncio.to_thread(self._store.take, again_s=AGAIN_S, limit=AT_ONCE)
        await asyncio.gather(*(self._tell(row, hook) for row, hook in due))
        return len(due)

    async def _tell(self, row: JobRow, hook: Webhook) -> None:
        error = None
        try:
            body = await self._body(row, hook)
            await self._outside.post(hook.url, body, _headers(row, hook, body))
        except (Unreachable, StorageError) as exc:
            error = str(exc)
        except Exception:  # noqa: BLE001 - a fault of ours: the others must be told all the same
            _log.exception("webhook of job %s", row.id)
            error = "internal error"
        if error:
            left = len(AGAIN_S) - hook.attempts - 1
            _log.warning("webhook of job %s %s; attempts left: %d", row.id, error, left)
        await asyncio.to_thread(self._store.record, row.id, row.fence, error)

    async def _body(self, row: JobRow, hook: Webhook) -> bytes:
        job = await jobs.job(row, lambda key: self._links.at(key, hook.base_url))
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = {"type": f"job.{row.state}", "timestamp": now, "data": job}
        return msgspec.json.encode(told)


def _headers(row: JobRow, hook: Webhook, body: bytes) -> dict[str, str]:
    name, now = f"{row.id}-{row.fence}", str(int(time.time()))
    headers = {
        "content-type": "application/json",
        "user-agent": "Fluxline",
        "webhook-id": name,
        "webhook-timestamp": now,
    }
    if hook.secret is None:
        return headers
    signed = b".".join((name.encode(), now.encode(), body))
    digest = hmac.new(_key(hook.secret), signed, hashlib.sha256).digest()
    return {**headers, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}


def _key(secret: str) -> bytes:
    """The bytes of a secret. Raises InvalidParams."""
    rule = "webhook_secret must have 1 to 256 characters, after whsec_ in base64"
    if not 1 <= len(secret) <= LONGEST_SECRET:
        raise InvalidParams(rule, field="webhook_secret")
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidParams(rule, field="webhook_secret") from None
