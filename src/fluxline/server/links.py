"""Where a stored picture can be read: at its store, or here under a signed path that expires."""

import hashlib
import hmac
import time
from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from fluxline.storage import Pictures

LINK_S = 3600


class Links:
    """Makes and checks links. base_url: of this server as seen from outside; empty: as asked."""

    def __init__(
        self,
        pictures: Pictures,
        secret: bytes,
        *,
        base_url: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pictures, self._secret = pictures, secret
        self.base_url, self._clock = base_url.rstrip("/"), clock

    async def of(self, key: str, request: Request) -> str:
        """The absolute link to a picture, good for LINK_S seconds or for ever if it is public."""
        return await self.at(key, str(request.base_url))

    def base(self, request: Request) -> str:
        """This server's own URL as its caller can reach it, without a slash at the end."""
        return self.base_url or str(request.base_url).rstrip("/")

    async def at(self, key: str, base_url: str) -> str:
        """The same for somebody who sees this server under that URL, if it was told no other."""
        if link := await self._pictures.link(key):
            return link
        base = self.base_url or base_url.rstrip("/")
        expires = int(self._clock()) + LINK_S
        return f"{base}/files/{key}?expires={expires}&signature={self._signature(key, expires)}"

    async def read(self, key: str, expires: str, signature: str) -> bytes:
        """The picture behind a link. Raises HTTPException, StorageError."""
        is_number = expires.isascii() and expires.isdigit() and len(expires) <= 12
        until = int(expires) if is_number else 0
        if not hmac.compare_digest(self._signature(key, until).encode(), signature.encode()):
            raise HTTPException(403, "the link's signature is wrong")
        if until < self._clock():
            raise HTTPException(410, "the link has expired: ask for the job again")
        data = await self._pictures.get(key)
        if data is None:
            raise HTTPException(404, "the picture is not kept any more")
        return data

    def _signature(self, key: str, expires: int) -> str:
        return hmac.new(self._secret, f"{key} {expires}".encode(), hashlib.sha256).hexdigest()


def files_router(links: Links) -> APIRouter:
    """Make the route that signed links lead to."""
    router = APIRouter(tags=["files"])

    @router.get("/files/{key:path}", response_class=Response)
    async def file(key: str, expires: str = "", signature: str = "") -> Response:
        """Read a stored picture. The link is the permission; no key is asked."""
        data = await links.read(key, expires, signature)
        headers = {"cache-control": "private, max-age=3600", "etag": f'"{key[3:67]}"'}
        media_type = f"image/{key.rpartition('.')[2]}"
        return Response(data, media_type=media_type, headers=headers)

    return router
