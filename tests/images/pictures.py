"""Small pictures the tests of this room share."""

import numpy as np
from numpy.typing import NDArray


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Every value independent: nothing a filter or a compressor could rely on."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(width: int, height: int) -> NDArray[np.uint8]:
    """Red says how far right (0 to 255), green how far down, at the pixels' centres."""
    across = (np.arange(width) + 0.5) * 255 / width
    down = (np.arange(height) + 0.5) * 255 / height
    picture = np.full((height, width, 3), 128.0)
    picture[..., 0] = across
    picture[..., 1] = down[:, None]
    return picture.round().astype(np.uint8)


def photo(side: int) -> NDArray[np.uint8]:
    """Noise with a photograph's falling spectrum, related colours, one level of grain."""
    rng = np.random.default_rng(0)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    weight = np.maximum(radius, 1 / side) ** -1.6
    fields = np.fft.rfft2(rng.standard_normal((4, side, side)))
    smooth = np.fft.irfft2(weight * fields, s=(side, side))
    colours = smooth[0] + 0.35 * smooth[1:]
    colours = 128 + 50 * (colours - colours.mean()) / colours.std()
    colours += rng.standard_normal(colours.shape)
    return np.ascontiguousarray(np.clip(colours, 0, 255).astype(np.uint8).transpose(1, 2, 0))
