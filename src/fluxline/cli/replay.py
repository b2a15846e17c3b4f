"""Making a picture again from its own file: what is asked then, what is different now.

Nothing here draws: `generate` does.
"""

import io
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fluxline import images
from fluxline.errors import InvalidParams
from fluxline.request import GenerationRequest, ImageFormat, SamplingParams

OF_REQUEST = ("prompt", "n", "top_k", "seed")
STARTS = (images.fit, images.stretch, images.place)
"""How a picture may have been made to fit, before another was drawn from it."""
OF_PARAMS = tuple(field.name for field in fields(SamplingParams))


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A picture of ours, as it lies in its file."""

    path: Path
    data: bytes
    format: ImageFormat
    recipe: images.Recipe

    @property
    def request(self) -> GenerationRequest:
        """What draws it again."""
        return replace(self.recipe.to_request("generate"), output_format=self.format)


def opened(path: Path) -> Original:
    """Open a picture of ours. Raises InvalidParams, UnsupportedFormat."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InvalidParams(f"cannot read {path}: {exc.strerror}", field="from") from exc
    recipe = images.read_recipe(data)
    if recipe is None:
        raise InvalidParams(f"{path} carries no recipe of ours", field="from")
    return Original(path=path, data=data, format=images.format_of(data), recipe=recipe)


def overridden(
    request: GenerationRequest, asked: GenerationRequest, given: Collection[str]
) -> GenerationRequest:
    """The request, but for the fields whose flags were given: these as they are `asked`."""
    given = {*given, "width", "height"} if "size" in given else given
    params = {name: getattr(asked.params, name) for name in OF_PARAMS if name in given}
    others = {name: getattr(asked, name) for name in OF_REQUEST if name in given}
    if "output" in given and asked.output_format != request.output_format:
        others |= {"output_format": asked.output_format, "compression": None}
    return replace(request, params=replace(request.params, **params), **others)


def started(
    original: Original, request: GenerationRequest, asked: GenerationRequest
) -> GenerationRequest:
    """The request, from the pictures that the original was drawn from, if there were any.

    Others, or some of another size, are drawn from as any would be. Raises InvalidParams when one
    is wanted and was not given.
    """
    _refuse_lacking(original, asked)
    request = replace(request, source=asked.source, mask=asked.mask, references=asked.references)
    if asked.source is None:
        return request
    width, height = request.params.width, request.params.height
    assert width is not None  # a recipe says it
    assert height is not None
    given, mask = images.decode(asked.source), None
    if asked.mask is not None:
        mask = images.decode_mask(asked.mask, given.shape[:2])
    for make in STARTS:
        fitted = make(given, width, height)
        if images.digest(fitted) == original.recipe.source:
            source = images.encode(fitted, format="png")
            part = None if mask is None else images.encode_mask(make(mask, width, height))
            return replace(request, source=source, mask=part)
    return request


def _refuse_lacking(original: Original, asked: GenerationRequest) -> None:
    recipe, name = original.recipe, original.path.name
    if recipe.source is not None and asked.source is None:
        message = f"{name} was drawn from a picture: give it with --image"
        raise InvalidParams(message, field="image")
    if recipe.mask is not None and asked.mask is None:
        message = f"a part of a picture was redrawn for {name}: give its --mask, or --expand"
        raise InvalidParams(message, field="mask")
    is_seen = recipe.source is None and asked.source is not None
    if (count := len(recipe.references)) > len(asked.references) + is_seen:
        message = f"{name} was drawn after {count} pictures: give each with --reference, in order"
        raise InvalidParams(message, field="reference")


def overrides(before: GenerationRequest, after: GenerationRequest) -> list[str]:
    """What was overridden, in words."""
    return [
        f"{name} {new!r} (was {old!r})"
        for owner, other, names in (
            (before, after, OF_REQUEST),
            (before.params, after.params, OF_PARAMS),
        )
        for name in names
        if (old := getattr(owner, name)) != (new := getattr(other, name))
    ]


def doubts(
    original: Original, request: GenerationRequest, now: images.Receipt, software: str
) -> list[str]:
    """Why bytes may not come back: what drew them, against what would draw the request now."""
    recipe, receipt, said = original.recipe, original.recipe.receipt, []
    if recipe.source is not None and not _is_from(request, recipe.source):
        said.append("it was drawn from another picture, or one cut otherwise")
    if recipe.source is None and not recipe.references and request.source is not None:
        said.append("it was drawn from no picture")
    if recipe.mask is None and request.mask is not None:
        said.append("all of it was redrawn, and not a part")
    if recipe.mask is not None and not _is_of(request, recipe.mask):
        said.append("another part of it was redrawn, or with a softer edge")
    if recipe.model != request.model:
        said.append(f"model {recipe.model} then, {request.model} now")
    if recipe.software != software:
        said.append(f"{recipe.software} then, {software} now")
    if receipt is None:
        said.append("it has no receipt")
    else:
        said += receipt.differences(now)
        if receipt.sigmas != now.sigmas and not overrides(original.request, request):
            said.append("its schedule has other sigmas now")
        if receipt.beside:
            said.append(f"it was drawn beside {receipt.beside} others")
    if recipe.unread:
        said.append(f"its recipe says what is not known here: {', '.join(recipe.unread)}")
    return said


def _is_from(request: GenerationRequest, source: str) -> bool:
    """Whether a request starts from the very pixels of that digest."""
    return request.source is not None and images.digest(images.decode(request.source)) == source


def _is_of(request: GenerationRequest, mask: str) -> bool:
    """Whether a request redraws the very part of that digest."""
    if request.source is None or request.mask is None:
        return False
    shape = images.decode(request.source).shape[:2]
    return images.digest(images.decode_mask(request.mask, shape)) == mask


def verdict(original: Original, data: bytes) -> str:
    """Compare a file drawn again, of the same format, with the original."""
    name = original.path.name
    if data == original.data:
        return f"the same bytes as {name}"
    try:
        before, after = _pixels(original.data), _pixels(data)
    except (OSError, Image.DecompressionBombError):
        return f"not the same bytes as {name}, whose pixels cannot be read"
    if before.shape != after.shape:
        return f"not the size of {name}"
    gap = np.abs(before - after)
    if not gap.any():
        return f"the same pixels as {name}; what their files say beside them differs"
    share = f"{100 * (gap > 0).mean():.2g} %"
    return f"not the same as {name}: {share} of the values differ, by at most {gap.max()} of 255"


def _pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int16)
