"""What a client asked and what it was answered, held against what the server did in the end.

The whole of the promise: what was accepted is finished, once, and is the picture of an undisturbed
run; what was refused was refused clearly and left nothing behind.
"""

import asyncio
import base64
import hashlib
import json
import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from fluxline.request import GenerationRequest
from tests.worker.fake_engine import picture

REFUSALS = {429, 503}
PATIENCE_S = 60.0


@dataclass(slots=True, kw_only=True)
class Entry:
    """One request. status 0: the line broke before the answer."""

    key: str
    prompt: str
    seed: int
    status: int
    took_s: float
    job_id: str | None = None  # of what was accepted
    retry_after: str | None = None
    sha256: str | None = None  # of the picture that came with the answer

    @property
    def drawn(self) -> str:
        """Hash of the picture that an undisturbed engine draws of it."""
        request = GenerationRequest(id="", prompt=self.prompt, seed=self.seed)
        return hashlib.sha256(picture(request, 0)).hexdigest()


class Ledger:
    """Asks, and writes down every answer: in memory, and line by line in a file for whoever must
    find out what happened."""

    def __init__(self, file: Path) -> None:
        self.entries: list[Entry] = []
        self._file = file

    @property
    def accepted(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status in (200, 202)]

    @property
    def refused(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status in REFUSALS]

    async def submit(self, http: httpx.AsyncClient, prompt: str, **fields: object) -> Entry:
        """Ask for a job under a key of its own."""
        return await self._ask(http, "/v1/jobs", f"key-{len(self.entries)}", prompt, fields)

    async def insist(self, http: httpx.AsyncClient, prompt: str, **fields: object) -> Entry:
        """Ask for a job until it is accepted, under one key, however often the line breaks."""
        key = f"key-{len(self.entries)}"
        fields = {"seed": len(self.entries), **fields}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                entry = await self._ask(http, "/v1/jobs", key, prompt, fields)
                if entry.status == 202:
                    return entry
                self.entries.remove(entry)  # the same question will be asked again
                await asyncio.sleep(0.05)

    async def draw(self, http: httpx.AsyncClient, prompt: str, **fields: object) -> Entry:
        """Ask for a picture on an open line, without a key."""
        return await self._ask(http, "/v1/images/generations", None, prompt, fields)

    async def settle(self, http: httpx.AsyncClient, within_s: float = PATIENCE_S) -> None:
        """Wait until every accepted job is over."""
        async with asyncio.timeout(within_s):
            for entry in self.accepted:
                while entry.job_id and not await _is_over(http, entry.job_id):
                    await asyncio.sleep(0.05)

    async def check_links(self, http: httpx.AsyncClient) -> None:
        """Fetch every picture of an accepted job and see that it is the right one."""
        for entry in self.accepted:
            if entry.job_id:
                told = (await http.get(f"/v1/jobs/{entry.job_id}")).json()
                assert told["status"] == "done", (entry, told)
                [image] = told["images"]
                data = (await http.get(image["url"])).content
                assert hashlib.sha256(data).hexdigest() == image["sha256"] == entry.drawn
                assert image["seed"] == entry.seed

    def check(self, data: Path, *, strangers: int = 0) -> None:
        """Hold the book against the job table of a server that may be gone.

        strangers: jobs without a key that somebody else asked for.
        """
        statuses = {entry.status for entry in self.entries}
        assert statuses <= {0, 200, 202} | REFUSALS, statuses
        for entry in self.refused:
            assert int(entry.retry_after or 0) >= 1, entry
        rows, unkeyed = _rows(data)
        for entry in self.accepted:
            if entry.sha256 is not None:
                assert entry.sha256 == entry.drawn, entry
            else:
                found = rows.pop(entry.key)
                assert found["id"] == entry.job_id
                assert (found["state"], found["error_code"]) == ("done", None), (entry, dict(found))
                [drawn] = json.loads(found["result"])
                assert (drawn["sha256"], drawn["seed"]) == (entry.drawn, entry.seed)
        assert not rows, f"jobs that nobody was told of: {list(rows)}"
        # Who waited on an open line may have been let in, and then left or been sent away.
        answered = strangers + sum(entry.sha256 is not None for entry in self.entries)
        broken = sum(entry.status == 0 for entry in self.entries)
        sent_away = sum(entry.status == 503 and not entry.key for entry in self.entries)
        assert answered <= len(unkeyed) <= answered + broken + sent_away
        assert sum(row["state"] == "done" for row in unkeyed) <= answered + broken

    async def _ask(
        self,
        http: httpx.AsyncClient,
        path: str,
        key: str | None,
        prompt: str,
        fields: dict[str, object],
    ) -> Entry:
        seed = len(self.entries)
        entry = Entry(key=key or "", prompt=prompt, seed=seed, status=0, took_s=0.0)
        self.entries.append(entry)
        headers = {"idempotency-key": key} if key else {}
        began = time.monotonic()
        try:
            body = {"prompt": prompt, "seed": seed, **fields}
            answer = await http.post(path, json=body, headers=headers)
        except httpx.TransportError:
            return self._write(entry)
        finally:
            entry.took_s = time.monotonic() - began
        entry.status = answer.status_code
        entry.retry_after = answer.headers.get("retry-after")
        if entry.status == 202:
            entry.job_id = answer.json()["id"]
        elif entry.status == 200:
            datum = answer.json()["data"][0]
            entry.sha256 = hashlib.sha256(base64.b64decode(datum["b64_json"])).hexdigest()
        return self._write(entry)

    def _write(self, entry: Entry) -> Entry:
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        return entry


async def _is_over(http: httpx.AsyncClient, job_id: str) -> bool:
    try:
        told = await http.get(f"/v1/jobs/{job_id}")
    except httpx.TransportError:
        return False
    return told.status_code == 200 and told.json()["status"] not in ("queued", "running")


def _rows(data: Path) -> tuple[dict[str, sqlite3.Row], list[sqlite3.Row]]:
    """The jobs that were asked under a key, by it, and the others."""
    db = sqlite3.connect(data / "jobs.sqlite3")
    db.row_factory = sqlite3.Row
    try:
        rows = db.execute("SELECT * FROM jobs").fetchall()
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    finally:
        db.close()
    keyed = [row for row in rows if row["idempotency_key"]]
    found = {row["idempotency_key"]: row for row in keyed}
    assert len(found) == len(keyed)
    return found, [row for row in rows if not row["idempotency_key"]]
