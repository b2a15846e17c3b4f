"""Pictures that callers send to start from: found in a body, fetched where that is allowed,
decoded, and made to fit what is to be drawn.
"""

import asyncio
import base64
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fluxline import images
from fluxline.errors import InvalidParams
from fluxline.request import GenerationRequest, ModelInfo, SamplingParams, check
from fluxline.server.fields import Fields, UnsupportedParam
from fluxline.server.outside import Outside, Unreachable

FIELDS = ("image", "images", "ref_images")
AT_ONCE = 2
"""Pictures that are decoded at a time: the largest takes a quarter gigabyte."""
CROP_TOLD = 0.05
"""The share of a picture that may fall away before its sender is told."""


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A picture to start from, decoded: uint8 (h, w, 3)."""

    pixels: images.Pixels

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height, in px."""
        height, width, _ = self.pixels.shape
        return width, height

    def sized(self, params: SamplingParams, info: ModelInfo) -> SamplingParams:
        """The params with a size; what was not asked follows the picture.

        Raises InvalidParams for what the model does not draw: nothing is made to fit that.
        """
        width, height = info.size_like(self.shape, params.width, params.height)
        sized = replace(params, width=width, height=height)
        check(sized, info)
        return sized

    def warnings(self, params: SamplingParams) -> list[str]:
        """Say what falls away of it at a size, if it is much."""
        width, height = params.width or 1, params.height or 1
        aspect = self.shape[0] * height / (self.shape[1] * width)
        if min(aspect, 1 / aspect) >= 1 - CROP_TOLD:
            return []
        return [f"of the picture given, its middle is used, in the shape of {width}x{height}"]

    async def start(
        self, request: GenerationRequest, *, is_stretched: bool = False
    ) -> GenerationRequest:
        """The request, starting from this picture at the size that it asks for: its middle in
        that shape, or the whole, stretched.
        """
        width, height = request.params.width, request.params.height
        assert width is not None  # sized
        assert height is not None
        make = images.stretch if is_stretched else images.fit
        fitted = await asyncio.to_thread(make, self.pixels, width, height)
        file = await asyncio.to_thread(partial(images.encode, fitted, format="png"))
        return replace(request, image=file)


class Uploads:
    """Reads pictures out of bodies. outside: where they may be fetched from. most_bytes: of one."""

    def __init__(self, outside: Outside, *, most_bytes: int) -> None:
        self._outside, self._most_bytes = outside, most_bytes
        self._room = asyncio.Semaphore(AT_ONCE)

    async def read(self, fields: Fields, *names: str) -> Upload | None:
        """Read the one picture of a body, by any of its names (FIELDS); None: there is none.

        A file of a form, base64, a data: URL, or an https: URL where fetching is on. Raises
        InvalidParams, UnsupportedParam, MissingParam.
        """
        names = names or FIELDS
        value = fields.value(*names)
        field = fields.used_name(names[0])
        if value is None or value in ("", []):
            return None
        return await self.decode(await self._data(_only(value, field), field), field)

    async def decode(self, data: bytes, field: str) -> Upload:
        """Decode a picture that was found. Raises InvalidParams."""
        async with self._room:
            try:
                return Upload(await asyncio.to_thread(images.decode, data))
            except InvalidParams as exc:
                raise InvalidParams(exc.message.replace("image", field, 1), field=field) from exc

    async def _data(self, value: Any, field: str) -> bytes:  # Any: JSON, or a form's part
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
        return from_base64(value, field)

    async def _fetched(self, url: str, field: str) -> bytes:
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


def _only(value: Any, field: str) -> Any:  # Any: JSON, or a form's part
    """The one picture of a list."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        message = f"{field}: one picture may be given; several as references are not served yet"
        raise UnsupportedParam(message, field=field)
    return value[0]
