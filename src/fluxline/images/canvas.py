"""What a part of a picture is redrawn on: a canvas grown at its sides, a mask that says which part.

Only what is there is moved and spread: nothing is drawn here. A mask is uint8 (height, width), 255
where it is redrawn and 0 where it stays.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fluxline.errors import InvalidParams
from fluxline.images.decoder import MOST_PIXELS

OVERLAP_PX = 16
"""How far into a picture what is drawn at its sides reaches, mixing ever less."""
OVERLAP_SHARE = 4
"""...at most one part in this of its side."""
SEEN_PIXELS = 1536 * 1024
"""Of a picture that is only looked at: half as many again as any model here looks at."""

Sides = tuple[int, int, int, int]
"""px to add at the left, the top, the right and the bottom."""


def expand(
    pixels: NDArray[np.uint8], sides: Sides, mask: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Grow a canvas around a picture, and the mask of what shall be drawn there.

    The picture's edge is repeated outward. A mask of the picture stays a part of the whole one.
    Raises InvalidParams for sides that add nothing, or more than MOST_PIXELS in all.
    """
    left, top, right, bottom = sides
    height, width = pixels.shape[:2]
    grown_width, grown_height = left + width + right, top + height + bottom
    if min(sides) < 0 or not any(sides):
        message = f"expand must add px at one side at least, and take none away; got {sides}"
        raise InvalidParams(message, field="expand")
    if grown_width * grown_height > MOST_PIXELS:
        message = (
            f"expand makes {grown_width}x{grown_height} px of {width}x{height}; "
            f"the most is {MOST_PIXELS // 10**6} megapixels"
        )
        raise InvalidParams(message, field="expand")
    around = [(top, bottom), (left, right)]
    across, down = _reach(left, width, right), _reach(top, height, bottom)
    grown_mask = np.maximum(across[None, :], down[:, None])
    if mask is not None:
        grown_mask = np.maximum(grown_mask, np.pad(mask, around))
    return np.pad(pixels, [*around, (0, 0)], mode="edge"), grown_mask


def shrink(pixels: NDArray[np.uint8], most: int = SEEN_PIXELS) -> NDArray[np.uint8]:
    """Make a picture as small as `most` pixels, in its own shape; a smaller one is the same array.

    A side of 1 px stays.
    """
    height, width = pixels.shape[:2]
    if width * height <= most:
        return pixels
    scale = (most / (width * height)) ** 0.5
    size = max(1, int(width * scale)), max(1, int(height * scale))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def soften(mask: NDArray[np.uint8], across: float, down: float) -> NDArray[np.uint8]:
    """Blur a mask by Gaussians of so many px."""
    blur = ImageFilter.GaussianBlur((across, down))
    return np.asarray(Image.fromarray(np.ascontiguousarray(mask)).filter(blur))


def fill_in(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cover what is redrawn with the colours around it; the nearer count for more.

    Level by level, from one pixel to all, each takes what is known in it, and the rest from the
    level before. Where all is redrawn, it becomes black.
    """
    height, width = mask.shape
    is_kept = (mask < 128)[..., None]
    known = np.dstack([np.where(is_kept, pixels, 0), is_kept]).astype(np.float32)
    canvas = known.sum((0, 1), keepdims=True)[..., :3] / max(int(is_kept.sum()), 1)
    for level in reversed(range(max(height, width).bit_length())):
        size = max(1, width >> level), max(1, height >> level)
        found, under = _resampled(known, size), _resampled(canvas, size)
        canvas = found[..., :3] + (1 - found[..., 3:]) * under
    return np.where(is_kept, pixels, canvas.round().clip(0, 255).astype(np.uint8))


def _resampled(planes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Planes (height, width, n) at another size (width, height)."""
    images = (Image.fromarray(planes[..., n]) for n in range(planes.shape[2]))
    return np.dstack([np.asarray(one.resize(size, Image.Resampling.BILINEAR)) for one in images])


def _reach(before: int, length: int, after: int) -> NDArray[np.uint8]:
    """Along one axis, how much is redrawn: all beside the picture, fading into it."""
    overlap = min(OVERLAP_PX, length // OVERLAP_SHARE)
    fading = np.round(255 * np.arange(overlap, 0, -1) / (overlap + 1)).astype(np.uint8)
    reach = np.zeros(before + length + after, np.uint8)
    if before:
        reach[:before] = 255
        reach[before : before + overlap] = fading
    if after:
        reach[before + length :] = 255
        reach[before + length - overlap : before + length] = fading[::-1]
    return reach
