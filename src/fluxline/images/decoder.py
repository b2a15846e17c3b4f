"""Files from outside to pixels: whatever comes, it is a picture of bearable size or an error.

The file's own type is what its bytes say, never its name or what its sender declared.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from fluxline.errors import InvalidParams
from fluxline.images.encoder import Pixels

READ = ("PNG", "JPEG", "WEBP", "AVIF")
MOST_PIXELS = 50 * 10**6
"""Of a file from outside: the largest that telephones make. It takes most of a gigabyte."""
MOST_SCANS = 100
"""Of a JPEG, which usually has 1, or 10 where it comes bit by bit: each takes as long again."""
SAME_SHAPE = 1.02
"""Of a mask and its picture, sides to each other: rounding of a size made smaller."""


def decode(data: bytes) -> Pixels:
    """Decode a PNG, JPEG, WebP or AVIF file: uint8 (height, width, 3), upright.

    What is transparent lies on white; of a film the first picture is taken. Raises InvalidParams
    for anything else, before it is unpacked where its header says that it is too large.
    """
    return np.asarray(_read(data, "image", _flat))


def decode_mask(data: bytes, shape: tuple[int, int]) -> Pixels:
    """Decode a mask of a picture (height, width): uint8 (height, width), 255 where it is redrawn.

    What is transparent in it is redrawn; in a file without transparency, what is white. A mask of
    another size and the same shape is resampled. Raises InvalidParams as `decode`, and for a mask
    of another shape or of nothing.
    """
    mask = _fitted(_read(data, "mask", _light), shape)
    check_mask(mask)
    return mask


def decode_painted(data: bytes, shape: tuple[int, int]) -> Pixels:
    """Decode a mask as `decode_mask` does, but what is painted on transparency is redrawn.

    So the AUTOMATIC1111 web UI has it. One of nothing is not refused: it may be inverted.
    """
    return _fitted(_read(data, "mask", _paint), shape)


def decode_hole(data: bytes) -> Pixels | None:
    """Decode the mask that a picture's own transparency is, as `decode_mask` does one beside it.

    None: no pixel of it is wholly transparent. A file whose head says that it has no transparency
    is not unpacked. Raises InvalidParams as `decode`.
    """
    with _opened(data, "image") as picture:
        if not picture.has_transparency_data:
            return None
        mask = np.asarray(_hole(ImageOps.exif_transpose(picture)))
    return mask if (mask == 255).any() else None


def check_mask(mask: Pixels) -> None:
    """Refuse a mask by which nothing would be redrawn. Raises InvalidParams."""
    if not (mask >= 128).any():
        message = "mask must say what is redrawn, in white or transparent; nothing in it is"
        raise InvalidParams(message, field="mask")


def _fitted(mask: Image.Image, shape: tuple[int, int]) -> Pixels:
    height, width = shape
    aspect = mask.width * height / (mask.height * width)
    if not 1 / SAME_SHAPE <= aspect <= SAME_SHAPE:
        message = (
            f"mask must have the shape of the picture, {width}x{height}; "
            f"got {mask.width}x{mask.height}"
        )
        raise InvalidParams(message, field="mask")
    return np.asarray(mask.resize((width, height), Image.Resampling.BILINEAR))


def _read(data: bytes, field: str, flatten: Callable[[Image.Image], Image.Image]) -> Image.Image:
    with _opened(data, field) as picture:
        return flatten(ImageOps.exif_transpose(picture))


@contextmanager
def _opened(data: bytes, field: str) -> Iterator[Image.Image]:
    """A picture whose head is read. What goes wrong with it inside is InvalidParams."""
    try:
        with Image.open(BytesIO(data), formats=READ) as picture:
            is_large = picture.width * picture.height > MOST_PIXELS
            if is_large or (picture.format == "JPEG" and data.count(b"\xff\xda") > MOST_SCANS):
                raise Image.DecompressionBombError
            yield picture
    except (Image.DecompressionBombError, MemoryError):
        message = f"{field} takes too much to read: it may have {MOST_PIXELS // 10**6} megapixels"
        raise InvalidParams(message, field=field) from None
    except Exception as exc:  # every codec has errors of its own
        lacks = "; this one is empty" if not data else ""
        message = f"{field} must be a whole PNG, JPEG, WebP or AVIF file{lacks}"
        raise InvalidParams(message, field=field) from exc


def digest(pixels: Pixels) -> str:
    """What tells pixels from others: sha256 of them, and of their shape; hex."""
    told = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    told.update(pixels.tobytes())
    return told.hexdigest()


def _light(picture: Image.Image) -> Image.Image:
    """How much of each pixel a mask lets go: what lacks of its alpha, or its lightness."""
    alpha = _alpha(picture)
    return _flat(picture).convert("L") if alpha is None else ImageOps.invert(alpha)


def _hole(picture: Image.Image) -> Image.Image:
    """How much of each pixel lacks of its alpha."""
    alpha = _alpha(picture)
    return Image.new("L", picture.size) if alpha is None else ImageOps.invert(alpha)


def _paint(picture: Image.Image) -> Image.Image:
    """How much of each pixel is painted: its alpha, or its lightness."""
    alpha = _alpha(picture)
    return _flat(picture).convert("L") if alpha is None else alpha


def _alpha(picture: Image.Image) -> Image.Image | None:
    """How opaque each pixel is; None: all are wholly."""
    if not picture.has_transparency_data:
        return None
    alpha = picture.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _flat(picture: Image.Image) -> Image.Image:
    """Without transparency, in 8 bit RGB."""
    if picture.mode.startswith("I"):  # 16 bit grey
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    over = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
