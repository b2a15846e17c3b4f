"""Pictures by the hash of their bytes, in whatever store obstore speaks with.

A key is made here and never by a caller, so no name from outside becomes a path; equal pictures
are stored once. Lives on one event loop; nothing here blocks it.
"""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, S3Store

from fluxline.errors import ConfigError, StorageError
from fluxline.request import ImageFormat

TRIAL = "fluxline-was-here"
CODE = re.compile(r"<Code>(\w{1,64})</Code>")
KEY = re.compile(rf"[0-9a-f]{{2}}/[0-9a-f]{{64}}\.({'|'.join(get_args(ImageFormat))})")
CONNECT_S, ANSWER_S, PATIENCE_S = timedelta(seconds=5), timedelta(seconds=15), timedelta(seconds=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One picture in the store. sha256: hex, of its bytes."""

    key: str
    sha256: str
    size: int  # bytes


class Pictures:
    """Puts, gets, links and sweeps pictures. link_s: how long a signed link is good, in seconds.

    public_url: where the store's pictures can be read by anybody; None: links are signed.
    """

    def __init__(
        self,
        store: MemoryStore | LocalStore | S3Store,
        *,
        public_url: str | None = None,
        link_s: float = 3600.0,
    ) -> None:
        self._store = store
        self._public_url = public_url.rstrip("/") if public_url else None
        self._link = timedelta(seconds=link_s)

    async def put(self, data: bytes, format: ImageFormat) -> Stored:
        """Store a picture. Raises StorageError when the store does not take it."""
        digest = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
        stored = Stored(key=f"{digest[:2]}/{digest}.{format}", sha256=digest, size=len(data))
        about = {"Content-Type": f"image/{format}"} if isinstance(self._store, S3Store) else None
        try:
            await obstore.put_async(self._store, stored.key, data, attributes=about)
        except (BaseError, OSError) as exc:
            raise _error("the picture could not be stored", exc) from exc
        return stored

    async def try_out(self) -> None:
        """Put, get and delete something, to know of a wrong setting before a picture is drawn.

        Raises ConfigError when the store refuses, StorageError when it does not answer.
        """
        try:
            await obstore.put_async(self._store, TRIAL, b"fluxline")
            await obstore.get_async(self._store, TRIAL)
            await obstore.delete_async(self._store, TRIAL)
        except (FileNotFoundError, PermissionDeniedError, UnauthenticatedError) as exc:
            text = "the storage refuses pictures: look at its bucket and credentials"
            raise ConfigError(_error(text, exc).message) from exc
        except (BaseError, OSError) as exc:
            raise _error("the storage does not answer", exc) from exc

    async def get(self, key: str) -> bytes | None:
        """Return a picture, or None if there is none of that key. Raises StorageError."""
        if not KEY.fullmatch(key):
            return None
        try:
            found = await obstore.get_async(self._store, key)
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as exc:
            raise _error("the picture could not be read", exc) from exc

    async def link(self, key: str) -> str | None:
        """Return where anybody with the link can read a picture; None: only through this server."""
        if self._public_url:
            return f"{self._public_url}/{key}"
        if not isinstance(self._store, S3Store):
            return None
        try:
            return await obstore.sign_async(self._store, "GET", key, self._link)
        except BaseError as exc:
            raise StorageError("the link could not be signed") from exc

    async def delete(self, key: str) -> None:
        """Delete a picture; one that is not there is no error."""
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as exc:
            raise _error("the picture could not be deleted", exc) from exc

    async def sweep(self, *, max_age_s: float | None, max_bytes: int | None) -> list[str]:
        """Delete what is too old, then the oldest until the rest fits; return the keys."""
        try:
            found = [meta async for batch in obstore.list(self._store) for meta in batch]
        except (BaseError, OSError) as exc:
            raise _error("the store could not be listed", exc) from exc
        pictures = sorted(
            (m for m in found if KEY.fullmatch(m["path"])),
            key=lambda m: m["last_modified"],
            reverse=True,
        )
        now, held, gone = datetime.now(UTC), 0, []
        for meta in pictures:
            age_s = (now - meta["last_modified"]).total_seconds()
            held += meta["size"]
            is_old = max_age_s is not None and age_s > max_age_s
            if is_old or (max_bytes is not None and held > max_bytes):
                held -= meta["size"]
                await self.delete(meta["path"])
                gone.append(meta["path"])
        return gone


def open_pictures(url: str, *, public_url: str | None = None, link_s: float = 3600.0) -> Pictures:
    """Open a store: "memory:", a folder, or "s3://bucket/prefix?endpoint=…&region=…".

    S3 credentials come from the usual AWS_* variables. Raises ConfigError.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "memory":
            store: Any = MemoryStore()
        elif parts.scheme == "s3":
            store = _s3(parts.netloc, parts.path.strip("/"), parse_qs(parts.query))
        elif parts.scheme in ("", "file"):
            folder = Path(parts.path if parts.scheme else url).expanduser()
            store = LocalStore(folder, mkdir=True)
        else:
            message = f"storage must be memory:, a folder or s3://bucket; got {parts.scheme}:"
            raise ConfigError(message)
    except (BaseError, OSError, ValueError) as exc:
        raise ConfigError("the storage cannot be opened: look at its folder or bucket") from exc
    return Pictures(store, public_url=public_url, link_s=link_s)


def _error(message: str, exc: Exception) -> StorageError:
    """Our error, with S3's own word for what is wrong and nothing else of what it said."""
    code = CODE.search(str(exc))
    return StorageError(f"{message}: it says {code[1]}" if code else message)


def _s3(bucket: str, prefix: str, options: dict[str, list[str]]) -> S3Store:
    if unknown := sorted(options.keys() - {"endpoint", "region"}):
        raise ConfigError(f"s3:// takes endpoint and region; got {unknown[0]!r}")
    endpoint = options.get("endpoint", [None])[0]
    return S3Store(
        bucket,
        prefix=prefix or None,
        endpoint=endpoint,
        region=options.get("region", ["us-east-1"])[0],
        virtual_hosted_style_request=endpoint is None,
        client_options={
            "connect_timeout": CONNECT_S,
            "timeout": ANSWER_S,
            "allow_http": bool(endpoint and endpoint.startswith("http:")),
        },
        retry_config={"max_retries": 4, "retry_timeout": PATIENCE_S},
    )
