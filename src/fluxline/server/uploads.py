"""Pictures that callers send: to draw on, masks of them, and others to look at.

Found in a body, fetched where that is allowed, read. Looked at only after everything else of a
request was found good.
"""

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from fluxline.ability import ModelInfo, is_looked_at
from fluxline.errors import InvalidParams, QueueFull
from fluxline.request import GenerationRequest
from fluxline.server.fields import Fields, UnsupportedParam
from fluxline.server.outside import Outside, Unreachable
from fluxline.server.reader import USUAL, Manner, Reader, Start, Wish

IMAGES = ("image", "images")
REFERENCES = "ref_images"
FIELDS = (*IMAGES, REFERENCES, "mask", "expand")
Sides = tuple[int, int, int, int]
MOST_PICTURES = 16
"""In one body, beside a mask: as many as OpenAI takes."""
MOST_WAITING = 32
"""Bodies whose pictures may wait for their turn to be read."""
MOST_ADDED = 8192
"""px at one side of an image."""
CROP_TOLD = 0.05
"""The share of a picture that may fall away before its sender is told."""
CUT_TOLD = "what is transparent in the picture given is taken for its mask"


@dataclass(frozen=True, slots=True)
class Part:
    """A picture as it stands in a body, in the field of that name."""

    value: Any  # JSON, or a form's part
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The pictures of a body. expand: px to draw at the image's left, top, right, bottom."""

    image: Part | None = None
    mask: Part | None = None
    references: tuple[Part, ...] = ()
    expand: Sides | None = None
    manner: Manner = USUAL

    def named(self, field: str) -> str:
        """The name that a sender used for one of a wish's fields."""
        if field.startswith("references["):
            return self.references[int(field[11:-1])].field
        part = {"image": self.image, "mask": self.mask}.get(field)
        return part.field if part else field


class Uploads:
    """Reads pictures out of bodies, those of one body at a time. Lives on one event loop.

    outside: where pictures may be fetched from. most_bytes: of all that are fetched for a body.
    """

    def __init__(self, outside: Outside, reader: Reader, *, most_bytes: int) -> None:
        self._outside, self._reader, self._most_bytes = outside, reader, most_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._waiting = 0

    async def begin(
        self, found: Found, request: GenerationRequest, info: ModelInfo
    ) -> tuple[GenerationRequest, list[str]]:
        """The request, with its pictures, and what its sender should know.

        A size that was not asked follows the image. In another shape its middle is taken, unless
        it is found with another manner. Raises InvalidParams, UnsupportedParam, QueueFull.
        """
        is_seen = _check(found, request, info)
        if self._waiting >= MOST_WAITING:
            text = "too many pictures wait to be read"
            raise QueueFull(text, retry_after_s=2.0)
        self._waiting += 1
        try:
            files = await self._files(found)
            wish = Wish(
                image=files[0],
                mask=files[1],
                references=tuple(file for file in files[2:] if file is not None),
                width=request.params.width,
                height=request.params.height,
                info=info,
                expand=found.expand,
                is_seen=is_seen,
                manner=found.manner,
            )
            start = await self._read(wish)
        except InvalidParams as exc:
            raise _renamed(exc, found) from exc
        finally:
            self._waiting -= 1
        params = replace(request.params, width=start.width, height=start.height)
        begun = replace(
            request,
            source=start.image,
            mask=start.mask,
            references=start.references,
            params=params,
        )
        told = [CUT_TOLD] if start.is_cut else []
        return begun, told if is_seen or found.manner.fit != "cropped" else told + _cropped(start)

    async def close(self) -> None:
        """End what reads them."""
        await asyncio.to_thread(self._reader.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, wish: Wish) -> Start:
        """Wait for one's turn. Who leaves while it is read leaves the turn taken."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._reader.read, wish
        )

    async def _files(self, found: Found) -> list[bytes | None]:
        """The files of image, mask and references. Raises InvalidParams, UnsupportedParam."""
        files: list[bytes | None] = []
        left = self._most_bytes
        for part in (found.image, found.mask, *found.references):
            file = None if part is None else await self._file(part, left)
            left -= len(file or b"")
            files.append(file)
        return files

    async def _file(self, part: Part, most_bytes: int) -> bytes:
        value, field = part.value, part.field
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
            return await self._fetched(value, field, max(most_bytes, 0))
        return await asyncio.to_thread(from_base64, value, field)

    async def _fetched(self, url: str, field: str, most_bytes: int) -> bytes:
        if self._outside.is_closed:
            message = (
                f"{field}: this server fetches no pictures; send the file, or a data: URL of it, "
                "or start the server with --image-hosts"
            )
            raise InvalidParams(message, field=field)
        self._outside.check(url, field)
        try:
            return await self._outside.get(url, most_bytes=most_bytes)
        except Unreachable as exc:
            raise InvalidParams(f"{field}: {exc}", field=field) from None


def find(
    fields: Fields,
    manner: Manner = USUAL,
    *,
    images: Sequence[str] = IMAGES,
    references: Sequence[str] = (REFERENCES,),
) -> Found | None:
    """Find the pictures of a body: the first of `images` is drawn on, all others are looked at.

    Without any, the first of `references` is drawn on. None: there are none. Raises InvalidParams.
    """
    sent = _parts(fields, *images)
    seen = [part for name in references for part in _parts(fields, name)]
    first, *others = (*sent, *seen) or (None,)
    masks = _parts(fields, "mask")
    if len(masks) > 1:
        raise InvalidParams("mask: one may be given", field="mask")
    mask, expand = masks[0] if masks else None, _sides(fields)
    if first is None and mask is None and expand is None:
        return None
    return Found(image=first, mask=mask, references=tuple(others), expand=expand, manner=manner)


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


def _parts(fields: Fields, *names: str) -> list[Part]:
    """The pictures of one field, by any of its names; in a list the second is called name[1]."""
    value, name = fields.value(*names), fields.used_name(names[0])
    values = value if isinstance(value, list) else [value]
    return [
        Part(one, f"{name}[{number}]" if number else name)
        for number, one in enumerate(values)
        if one not in (None, "")
    ]


def _sides(fields: Fields) -> Sides | None:
    """How much is drawn at the sides of the image: four numbers in a list, or as text."""
    value = fields.value("expand")
    if value in (None, "", []):
        return None
    said = value.split(",") if isinstance(value, str) else value
    try:
        sides = [-1 if isinstance(side, bool | float) else int(side) for side in said]
    except (TypeError, ValueError):
        sides = []
    check_expand(sides)
    return (sides[0], sides[1], sides[2], sides[3]) if any(sides) else None


def check_expand(sides: Sequence[int]) -> None:
    """Refuse what is not four numbers of px. Raises InvalidParams."""
    if len(sides) != 4 or not all(0 <= side <= MOST_ADDED for side in sides):
        message = (
            "expand must be the px to add at the left, top, right and bottom, each from 0 to "
            f"{MOST_ADDED}, like [64, 0, 64, 0]"
        )
        raise InvalidParams(message, field="expand")


def _check(found: Found, request: GenerationRequest, info: ModelInfo) -> bool:
    """Refuse what the model takes not, before anything is read; say whether it only looks at the
    image, as one does that looks at pictures and is neither given a mask nor a strength.

    Raises InvalidParams, UnsupportedParam.
    """
    is_masked = found.mask is not None or found.expand is not None
    is_seen = is_looked_at(request.params, info, is_masked=is_masked)
    pictures = [part for part in (found.image, *found.references) if part is not None]
    if len(pictures) > MOST_PICTURES:
        message = f"{pictures[0].field}: at most {MOST_PICTURES} may be given; got {len(pictures)}"
        raise InvalidParams(message, field=pictures[0].field)
    if is_masked and found.image is None:
        field = found.mask.field if found.mask else "expand"
        raise InvalidParams(f"{field} needs the image that it belongs to", field=field)
    if info.fills and not is_masked and not found.manner.is_cut:
        message = f"{info.name} fills a part of a picture: give mask or expand"
        raise InvalidParams(message, field="mask")
    room = info.references + (0 if is_seen or found.image is None else 1)
    if len(pictures) > room:
        few = {0: "looks at no picture", 1: "takes one picture"}
        what = few.get(room, f"takes {room} pictures at most")
        message = f"{pictures[0].field}: {info.name} {what}; got {len(pictures)}"
        raise UnsupportedParam(message, field=pictures[0].field)
    return is_seen


def _cropped(start: Start) -> list[str]:
    """Say what falls away of a picture, if it is much."""
    if start.shape is None or start.width is None or start.height is None:
        return []
    aspect = start.shape[0] * start.height / (start.shape[1] * start.width)
    if min(aspect, 1 / aspect) >= 1 - CROP_TOLD:
        return []
    size = f"{start.width}x{start.height}"
    return [f"of the picture given, its middle is used, in the shape of {size}"]


def _renamed(error: InvalidParams, found: Found) -> InvalidParams:
    """A refusal of a picture, by the name that its sender used."""
    name = found.named(error.field)
    if name == error.field:
        return error
    return type(error)(f"{name}: {error.message}", field=name)
