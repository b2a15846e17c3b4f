"""How alike two pictures are: PSNR, SSIM and GMSD, of uint8 (height, width, 3)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]

WINDOW, SPREAD = 11, 1.5  # px, of SSIM's Gaussian
PREWITT = torch.tensor([[1.0, 0.0, -1.0]] * 3) / 3
LIGHT = torch.tensor([0.299, 0.587, 0.114])


def psnr(one: Picture, other: Picture) -> float:
    """Peak signal to noise, in dB; infinite where they are equal."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(one: Picture, other: Picture) -> float:
    """Structural similarity of their light: 1 where they are equal.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", section III; windows that lie within the picture.
    """
    a, b = _light(one), _light(other)
    at = torch.arange(WINDOW) - WINDOW // 2
    weights = torch.exp(-(at**2) / (2 * SPREAD**2)).double()
    window = torch.outer(weights, weights) / weights.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window[None, None])

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    shared = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
    return float((alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def gmsd(one: Picture, other: Picture) -> float:
    """Deviation of the similarity of their gradients: 0 where they are equal, more the less so.

    Source: Xue et al. 2014, "Gradient Magnitude Similarity Deviation" (arXiv:1308.3052): light at
    half the size, Prewitt's gradients, c = 170.
    """
    a, b = (_gradient(F.avg_pool2d(_light(picture), 2)) for picture in (one, other))
    c = 170.0
    return float(((2 * a * b + c) / (a**2 + b**2 + c)).std(correction=0))


def _light(picture: Picture) -> Tensor:
    """(1, 1, height, width) float64, from 0 to 255."""
    return (torch.from_numpy(picture).double() @ LIGHT.double())[None, None]


def _gradient(light: Tensor) -> Tensor:
    across = F.conv2d(light, PREWITT.double()[None, None], padding=1)
    down = F.conv2d(light, PREWITT.T.double()[None, None], padding=1)
    return torch.sqrt(across**2 + down**2)
