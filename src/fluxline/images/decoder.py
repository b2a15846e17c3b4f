"""Files from outside to pixels: whatever comes, it is a picture of bearable size or an error.

The file's own type is what its bytes say, never its name or what its sender declared.
"""

import hashlib
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


def decode(data: bytes) -> Pixels:
    """Decode a PNG, JPEG, WebP or AVIF file: uint8 (height, width, 3), upright.

    What is transparent lies on white; of a film the first picture is taken. Raises InvalidParams
    for anything else, before it is unpacked where its header says that it is too large.
    """
    try:
        with Image.open(BytesIO(data), formats=READ) as picture:
            is_large = picture.width * picture.height > MOST_PIXELS
            if is_large or (picture.format == "JPEG" and data.count(b"\xff\xda") > MOST_SCANS):
                raise Image.DecompressionBombError
            return np.asarray(_flat(ImageOps.exif_transpose(picture)))
    except (Image.DecompressionBombError, MemoryError):
        message = f"image takes too much to read: it may have {MOST_PIXELS // 10**6} megapixels"
        raise InvalidParams(message, field="image") from None
    except Exception as exc:  # every codec has errors of its own
        lacks = "; this one is empty" if not data else ""
        message = f"image must be a whole PNG, JPEG, WebP or AVIF file{lacks}"
        raise InvalidParams(message, field="image") from exc


def digest(pixels: Pixels) -> str:
    """What tells pixels from others: sha256 of them, and of their shape; hex."""
    told = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    told.update(pixels.tobytes())
    return told.hexdigest()


def _flat(picture: Image.Image) -> Image.Image:
    """Without transparency, in 8 bit RGB."""
    if picture.mode.startswith("I"):  # 16 bit grey
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    over = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
