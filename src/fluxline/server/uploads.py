"""Pictures that callers send to start from: found in a body, fetched where that is allowed, read.

Looked at only after everything else of a request was found good.
"""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from fluxline.errors import InvalidParams, QueueFull
from fluxline.request import GenerationRequest, ModelInfo
from fluxline.server.fields import Fields, UnsupportedParam
from fluxline.server.outside import Outside, Unreachable
from fluxline.server.reader import Reader, Start, Wish

FIELDS = ("image", "images", "ref_images")
MOST_WAITING = 32
"""Pictures that may wait for their turn to be read."""
CROP_TOLD = 0.05
"""The share of a picture that may fall away before its sender is told."""


@dataclass(frozen=True, slots=True)
class Found:
    """A picture as it stands in a body, in the field of that name."""

    value: Any  # JSON, or a form's part
    field: str


class Uploads:
    """Reads pictures out of bodies, one at a time. Lives on one event loop.

    outside: where pictures may be fetched from. most_bytes: of one that is fetched.
    """

    def __init__(self, outside: Outside, reader: Reader, *, most_bytes: int) -> None:
        self._outside, self._reader, self._most_bytes = outside, reader, most_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._waiting = 0

    def find(self, fields: Fields, *names: str) -> Found | None:
        """Find the one picture of a body, by any of its names (FIELDS); None: there is none.

        Raises InvalidParams, UnsupportedParam.
        """
        names = names or FIELDS
        value, field = fields.value(*names), fields.used_name(names[0])
        if isinstance(value, list) and len(value) > 1:
            message = f"{field}: one picture may be given; several as references are not served yet"
            raise UnsupportedParam(message, field=field)
        if isinstance(value, list):
            value = value[0] if value else None
        return None if value in (None, "") else Found(value, field)

    async def begin(
        self,
        found: Found,
        request: GenerationRequest,
        info: ModelInfo,
        *,
        is_stretched: bool = False,
    ) -> tuple[GenerationRequest, list[str]]:
        """The request, starting from a picture, and what its sender should know.

        A size that was not asked follows the picture. In another shape its middle is taken, or
        the whole, stretched. Raises InvalidParams, UnsupportedParam, QueueFull.
        """
        if self._waiting >= MOST_WAITING:
            text = "too many pictures wait to be read"
            raise QueueFull(text, retry_after_s=2.0)
        self._waiting += 1
        try:
            file = await self._file(found)
            params = request.params
            wish = Wish(file, params.width, params.height, info, is_stretched)
            start = await self._read(wish)
        except InvalidParams as exc:
            raise _renamed(exc, found.field) from exc
        finally:
            self._waiting -= 1
        params = replace(params, width=start.width, height=start.height)
        told = [] if is_stretched else _cropped(start)
        return replace(request, source=start.file, params=params), told

    async def close(self) -> None:
        """End what reads them."""
        await asyncio.to_thread(self._reader.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, wish: Wish) -> Start:
        """Wait for one's turn. Who leaves while it is read leaves the turn taken."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._reader.read, wish
        )

    async def _file(self, found: Found) -> bytes:
        value, field = found.value, found.field
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            if value.get("file_id") is not None:
                message = "file_id is not served: send the picture, or its data: URL"
                raise UnsupportedParam(message, field=field)
            value = value.get("image_url")
            value = value.get("url") if isinstance(value, dict) else value
        if not isinstance(value, str):
            message = f"{field} must be a picture: base64, a data: URL, or a form's file"
            raise InvalidParams(message, field=field)
        if value[:8].lower().startswith(("http://", "https://")):
            return await self._fetched(value, field)
        return await asyncio.to_thread(from_base64, value, field)

    async def _fetched(self, url: str, field: str) -> bytes:
        if self._outside.is_closed:
            message = (
                f"{field}: this server fetches no pictures; send the file, or a data: URL of it, "
                "or start the server with --image-hosts"
            )
            raise InvalidParams(message, field=field)
        self._outside.check(url, field)
        try:
            return await self._outside.get(url, most_bytes=self._most_bytes)
        except Unreachable as exc:
            raise InvalidParams(f"{field}: {exc}", field=field) from None


def from_base64(text: str, field: str) -> bytes:
    """Decode base64, with a data: URL's head or without. Raises InvalidParams."""
    head, comma, rest = text.partition(",")
    is_data = head[:5].lower() == "data:" and head.rstrip().lower().endswith(";base64")
    body = rest if comma and is_data else text
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError:  # not even ASCII
        message = f"{field} must be a picture as base64, or a data: URL of one"
        raise InvalidParams(message, field=field) from None


def _cropped(start: Start) -> list[str]:
    """Say what falls away of a picture, if it is much."""
    aspect = start.shape[0] * start.height / (start.shape[1] * start.width)
    if min(aspect, 1 / aspect) >= 1 - CROP_TOLD:
        return []
    size = f"{start.width}x{start.height}"
    return [f"of the picture given, its middle is used, in the shape of {size}"]


def _renamed(error: InvalidParams, field: str) -> InvalidParams:
    """A refusal of an image, by the name that its sender used."""
    if error.field != "image" or field == "image":
        return error
    return type(error)(f"{field}: {error.message}", field=field)
