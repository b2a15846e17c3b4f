"""A score of a picture's technique: is it sharp, has it contrast, are its tones within range?

It knows nothing of a prompt and nothing of beauty. For choosing between pictures of one request
where no model can judge them; scores of different motifs say little. Reckoned in whole numbers up
to the last divisions, so that it is the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

PATCH = 8  # px
GRAIN = 4.0
"""Of white noise, the 99th percentile of edges is 3.8 times their median: so much is no edge."""


def technical_score(pixels: NDArray[np.uint8]) -> float:
    """Score a picture (height, width, 3) from 0 to 1: the mean of three parts, each 0 to 1.

    Sharpness: how far the strongest edges stand out of the grain. Contrast: twice the standard
    deviation of the brightness of patches, in which grain is evened out. Range: the share of
    values that are neither 0 nor 255.
    """
    red, green, blue = (pixels[..., k].astype(np.uint16) for k in range(3))
    luma = ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.int16)  # ITU-R BT.601, of 256
    contrast = min(2 * float(_patches(luma).std()) / 255, 1.0)
    in_range = np.count_nonzero((pixels > 0) & (pixels < 255)) / pixels.size
    return (_sharpness(luma) + contrast + in_range) / 3


def _patches(luma: NDArray[np.int16]) -> NDArray[np.float64]:
    """Mean brightness of patches of 8 x 8 px; of a picture too small for one, every pixel's."""
    height, width = (side // PATCH for side in luma.shape)
    if not height or not width:
        return luma.astype(np.float64)
    whole = luma[: height * PATCH, : width * PATCH].reshape(height, PATCH, width, PATCH)
    means: NDArray[np.float64] = whole.sum(axis=(1, 3), dtype=np.int64) / PATCH**2
    return means


def _sharpness(luma: NDArray[np.int16]) -> float:
    """Of a picture's brightness (height, width), 0 to 1; 0 where it is too small for an edge."""
    if min(luma.shape) < 3:
        return 0.0
    beside = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    edges = np.bincount(np.abs(4 * luma[1:-1, 1:-1] - beside).ravel()).cumsum()
    grain, edge = np.searchsorted(edges, (0.5 * edges[-1], 0.99 * edges[-1]))
    return min(max(float(edge - GRAIN * grain) / 255, 0.0), 1.0)
