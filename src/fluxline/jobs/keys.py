"""API keys: who may ask for what, and how much of it. Only a hash of a key is kept.

A key reads `flx_<id>_<secret>`: the id finds the row, the secret's hash is compared in constant
time. Keys that come from the environment are whole secrets, and may do all but administer.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy import insert, select, update

from fluxline.errors import InvalidParams
from fluxline.jobs.database import Database
from fluxline.jobs.table import keys

PREFIX = "flx"
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


class Scope(StrEnum):
    """What a key may do."""

    GENERATE = "generate"  # draw, see its own jobs, and read the metrics, which name nobody
    ADMIN = "admin"  # see and touch everybody's jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key, without its secret; the columns say what each field means."""

    id: str
    name: str
    scopes: frozenset[Scope] = frozenset({Scope.GENERATE})
    priority: int = 0
    most_open: int | None = None
    rate: float | None = None
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None


class KeyRing:
    """The keys of a database, and those of the environment. Any thread may call."""

    def __init__(
        self,
        database: Database,
        *,
        given: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._clock = database, clock
        self._given = [(_digest(key), _given_id(key)) for key in given]

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope] = (Scope.GENERATE,),
        priority: int = 0,
        most_open: int | None = None,
        rate: float | None = None,
        days: float | None = None,
    ) -> tuple[Key, str]:
        """Make a key; return it and what its owner must keep, which is shown this once."""
        if not name.strip() or len(name) > 64:
            raise InvalidParams("a key's name has 1 to 64 characters", field="name")
        now, secret = self._clock(), secrets.token_urlsafe(32)
        key = Key(
            id=secrets.token_hex(6),
            name=name,
            scopes=frozenset(scopes),
            priority=priority,
            most_open=most_open,
            rate=rate,
            created_at=now,
            expires_at=None if days is None else now + 86400 * days,
        )
        row = {**asdict(key), "scopes": " ".join(sorted(scopes)), "digest": _digest(secret)}
        with self._database.writing() as db:
            db.execute(insert(keys).values(row))
        return key, f"{PREFIX}_{key.id}_{secret}"

    def all(self) -> list[Key]:
        """Every key that was made here, the newest first."""
        with self._database.reading() as db:
            rows = db.execute(select(keys).order_by(keys.c.created_at.desc())).mappings()
            return [_key_of(dict(row)) for row in rows]

    @property
    def is_empty(self) -> bool:
        """Whether no key was ever made or given, so that the doors are open."""
        return not self._given and not self.all()

    def revoke(self, key_id: str) -> bool:
        """Make a key good for nothing. False: there is none of that id."""
        with self._database.writing() as db:
            changed = db.execute(
                update(keys).where(keys.c.id == key_id).values(revoked_at=self._clock())
            )
            return bool(changed.rowcount)

    def check(self, presented: str) -> Key | None:
        """The key that was presented, if it is good; a wrong one takes as long as a right one."""
        digest = _digest(presented)
        matches = [i for known, i in self._given if hmac.compare_digest(known, digest)]
        key_id, _, secret = presented.removeprefix(f"{PREFIX}_").partition("_")
        looked_for = key_id if key_id.isascii() and key_id.isalnum() else ""
        with self._database.reading() as db:
            row = db.execute(select(keys).where(keys.c.id == looked_for)).mappings().first()
        known = _NOBODY if row is None else row["digest"]
        is_right = hmac.compare_digest(known, _digest(secret))
        if matches:
            return Key(id=matches[0], name="from the environment")
        if row is None or not is_right:
            return None
        key = _key_of(dict(row))
        is_over = key.expires_at is not None and key.expires_at <= self._clock()
        return None if is_over or key.revoked_at is not None else key


def _key_of(row: dict[str, object]) -> Key:
    scopes = frozenset(Scope(word) for word in str(row.pop("scopes")).split())
    del row["digest"]
    return Key(scopes=scopes, **row)  # type: ignore[arg-type]  # the columns are the fields


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _given_id(key: str) -> str:
    """A name for a key of the environment that does not give it away."""
    return f"env-{_digest(key)[:8]}"
