"""The files of pictures that `fluxline generate` is given, and a canvas that grows around one."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fluxline import images
from fluxline.errors import InvalidParams
from fluxline.request import GenerationRequest

_SIDES = re.compile(r"(\d{1,5}),(\d{1,5}),(\d{1,5}),(\d{1,5})", re.ASCII)


def read(path: Path | None, option: str) -> bytes | None:
    """Read the file of an option; None: it was not given. Raises InvalidParams."""
    return None if path is None else _bytes_of(path, option)


def read_all(paths: Iterable[Path], option: str) -> tuple[bytes, ...]:
    """Read the files of an option that may be given again. Raises InvalidParams."""
    return tuple(_bytes_of(path, option) for path in paths)


def expanded(asked: GenerationRequest, expand: str) -> GenerationRequest:
    """The request, drawn on a larger canvas, and as large as that unless a size is asked.

    expand: "LEFT,TOP,RIGHT,BOTTOM" in px. Raises InvalidParams.
    """
    match = _SIDES.fullmatch(expand.replace(" ", ""))
    if match is None:
        message = f"expand must be LEFT,TOP,RIGHT,BOTTOM in px, like 64,0,64,0; got {expand!r}"
        raise InvalidParams(message, field="expand")
    if asked.source is None:
        raise InvalidParams("expand needs the --image that is drawn beside", field="expand")
    pixels = images.decode(asked.source)
    mask = None if asked.mask is None else images.decode_mask(asked.mask, pixels.shape[:2])
    left, top, right, bottom = (int(px) for px in match.groups())
    pixels, mask = images.expand(pixels, (left, top, right, bottom), mask)
    params = asked.params
    if params.width is None and params.height is None:
        params = replace(params, width=pixels.shape[1], height=pixels.shape[0])
    return replace(
        asked,
        source=images.encode(pixels, format="png"),
        mask=images.encode_mask(mask),
        params=params,
    )


def _bytes_of(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidParams(f"cannot read {path}: {exc.strerror}", field=option) from exc
