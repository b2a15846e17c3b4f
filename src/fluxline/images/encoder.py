"""Pixels to PNG, JPEG, WebP or AVIF bytes, with the recipe and the origin inside.

Not a decoder, and never a resizer but for `preview`. Safe on any thread: nothing is shared, and
the compressors let go of the interpreter lock while they work.
"""

import logging
import struct
from io import BytesIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from fluxline.errors import EngineError, InvalidParams, UnsupportedFormat
from fluxline.images.containers import (
    JPEG_EXIF_LIMIT,
    PNG_SIGNATURE,
    exif,
    png_chunk,
    png_international_text,
    png_text,
)
from fluxline.images.recipe import INFOTEXT_KEYWORD, JSON_KEYWORD, Recipe
from fluxline.images.xmp import XMP_KEYWORD, xmp

Pixels = NDArray[np.uint8]
"""A picture: uint8 (height, width, 3), red green blue, top row first."""

DEFAULT_QUALITY = {"jpeg": 95, "webp": 90, "avif": 80}
MAX_SIDE_PX = {"png": 2**31 - 1, "jpeg": 65500, "webp": 16383, "avif": 32768}
"""What the formats, and libjpeg, can say; and of avif, what libavif reads again."""

PREVIEW_QUALITY = 70

_log = logging.getLogger(__name__)


def encode(
    pixels: Pixels,
    *,
    format: str,
    compression: int | None = None,
    recipe: Recipe | None = None,
) -> bytes:
    """Encode a picture as a "png", "jpeg", "webp" or "avif" file.

    `compression` is the quality, 0 to 100 (None: DEFAULT_QUALITY); png ignores it.
    With a recipe goes an XMP packet that says that a trained model made the picture.
    A recipe too long for a JPEG's one EXIF segment is left out with a warning in the log: the
    picture has been paid for. Raises UnsupportedFormat, and InvalidParams for a `compression`
    out of range or a side the format cannot hold.
    """
    _check_shape(pixels)
    height, width = pixels.shape[:2]
    check_format(format, compression=compression, width=width, height=height)
    if format == "png":
        return _png(pixels, recipe)
    quality = DEFAULT_QUALITY[format] if compression is None else compression
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return _lossy(picture, format, quality, recipe)


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Encode a mask, uint8 (height, width), as a grey PNG file."""
    return _png(mask, None)


def check_format(format: str, *, compression: int | None, width: int, height: int) -> None:
    """Check, before anything is drawn, that a picture of this size can be encoded so.

    Raises UnsupportedFormat, and InvalidParams naming what is out of range.
    """
    if format not in MAX_SIDE_PX:
        known = ", ".join(MAX_SIDE_PX)
        raise UnsupportedFormat(f"output_format must be one of {known}; got {format!r}")
    for name, side in (("height", height), ("width", width)):
        if side > MAX_SIDE_PX[format]:
            message = f"{name} of a {format} must be at most {MAX_SIDE_PX[format]} px; got {side}"
            raise InvalidParams(message, field=name)
    if compression is None or format == "png":
        return
    if type(compression) is not int or not 0 <= compression <= 100:
        message = f"output_compression must be a whole number from 0 to 100; got {compression!r}"
        raise InvalidParams(message, field="output_compression")


def preview(pixels: Pixels, format: str = "jpeg", *, max_side: int = 512) -> bytes:
    """Encode a small picture to look at while waiting: `max_side` px at most, never enlarged."""
    _check_shape(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((max_side, max_side), Image.Resampling.BILINEAR)
    if format == "png":
        return _png(np.asarray(picture), None)
    return _lossy(picture, format, PREVIEW_QUALITY, None)


def _png(pixels: Pixels, recipe: Recipe | None) -> bytes:
    """Up filter and isal level 1, chosen by bench/png.py.

    1024 px photo-like: an eighth of the time of Pillow level 1 at 4 % fewer bytes (2026-11, one
    shared x86 core). Average and adaptive filters win 5 % at most, and lose it on flat pictures.
    """
    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 else 0  # RGB or grey
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)  # 8 bit, not interlaced
    texts = b""
    if recipe is not None:
        texts = png_text(INFOTEXT_KEYWORD, recipe.to_infotext())
        texts += png_text(JSON_KEYWORD, recipe.to_json())
        texts += png_international_text(XMP_KEYWORD, xmp(recipe.software))
    body = isal_zlib.compress(_up_filtered(pixels), 1)
    return b"".join(
        (
            PNG_SIGNATURE,
            png_chunk(b"IHDR", header),
            texts,
            png_chunk(b"IDAT", body),
            png_chunk(b"IEND", b""),
        )
    )


def _up_filtered(pixels: Pixels) -> Pixels:
    """Each row as filter type 2: its difference from the row above, modulo 256."""
    rows = pixels.reshape(pixels.shape[0], -1)  # (height, 3 width), or (height, width) of a mask
    filtered = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _lossy(picture: Image.Image, format: str, quality: int, recipe: Recipe | None) -> bytes:
    about: dict[str, object] = {}
    if recipe is not None:
        about = {"exif": _exif(recipe, format), "xmp": xmp(recipe.software).encode()}
    file = BytesIO()
    picture.save(file, format.upper(), quality=quality, **_options(format, quality), **about)
    return file.getvalue()


def _options(format: str, quality: int) -> dict[str, object]:
    """What Pillow's encoder of a format is told beside the quality. Times: 1024 px photo-like.

    webp: method 2, a fifth of method 6's time for 13 % more bytes. avif: speed 9, 271 ms and
    133 KiB where webp takes 188 ms and 143 KiB at 0.9 dB less; speed 8 takes 367 ms, speed 6
    2.1 s for 5 % (2026-11, one shared x86 core). One thread: libaom's bytes depend on the count.
    """
    if format == "jpeg":
        # From quality 90 on people mean "no loss I can see", and halved colour shows on flat red.
        return {"subsampling": "4:4:4" if quality >= 90 else "4:2:0"}
    if format == "webp":
        return {"method": 2}
    return {"subsampling": "4:4:4", "speed": 9, "max_threads": 1, "autotiling": False}


def _exif(recipe: Recipe, format: str) -> bytes:
    """The recipe; of what one segment of a JPEG cannot hold, the exact JSON alone, or nothing."""
    note = recipe.to_json()
    for comment in (recipe.to_infotext(), ""):
        block = exif(comment, JSON_KEYWORD, note)
        if format != "jpeg" or len(block) <= JPEG_EXIF_LIMIT:
            return block
    _log.warning("a recipe of %d bytes does not fit into a JPEG file: left out", len(note))
    return b""


def _check_shape(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise EngineError(
            f"pixels must be uint8 (height, width, 3); got {pixels.dtype} {pixels.shape}"
        )
