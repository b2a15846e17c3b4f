"""How near what we compute is to what somebody else does."""

import numpy as np
from torch import Tensor


def relative_l2(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|."""
    return float((ours - theirs).norm() / theirs.norm())


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal to noise ratio in dB of two uint8 pictures."""
    error = np.mean((ours.astype(np.float64) - theirs) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)
