"""What decoding a picture takes, whole and in bands: FLUX.1's VAE with random weights.

`python -m bench.decoding 1024 2048` counts the tensors that live at once, without computing them;
`--real` decodes the first size, whole or `--bands`, and says the process's peak and the time.
"""

import argparse
import math
import resource
import time
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from fluxline.engine.peak import peak_of
from fluxline.models.banded import BandedVae

GIB = 2**30


def flux1_vae() -> Any:
    """As black-forest-labs/FLUX.1-dev has it."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def counted(side: int, whole_pixels: float) -> int:
    """Bytes of the tensors that live at once while a square picture is decoded in float32."""
    with torch.device("meta"):
        vae = BandedVae(flux1_vae().to(memory_format=torch.channels_last))
        latents = torch.empty(1, 16, side // 8, side // 8)
    vae.whole_pixels = whole_pixels
    with torch.inference_mode(), peak_of(torch.device("meta")) as peak:
        vae.decode(latents)
    return peak.bytes


def real(side: int, whole_pixels: float) -> None:
    """Decode, and say what the process took beside its weights."""
    vae = BandedVae(flux1_vae().to(memory_format=torch.channels_last))
    vae.whole_pixels = whole_pixels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    with torch.inference_mode():
        vae.decode(torch.randn(1, 16, side // 8, side // 8))
    took_s = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{side} px: {peak / GIB:.2f} GiB more in the process, {took_s:.0f} s")


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    """Attention as kernels have it, that keep no scores; on meta torch would count them."""
    return torch.empty_like(q)


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", type=int, nargs="+")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--bands", action="store_true")
    asked = parser.parse_args()
    if asked.real:
        real(asked.sides[0], 0 if asked.bands else math.inf)
        return
    F.scaled_dot_product_attention = fused
    for side in asked.sides:
        whole, bands = (counted(side, pixels) / GIB for pixels in (math.inf, 0))
        print(f"{side} px: {whole:.2f} GiB whole, {bands:.2f} GiB in bands")


if __name__ == "__main__":
    main()
