"""Train diffusers' AutoencoderKL to read and write the linear code of `code.py`.

The decoder learns pictures from codes, a little disturbed so that it forgives what a transformer
gets slightly wrong; the encoder learns the codes of pictures. Both on 64 px crops: convolutions
are local.

    python -m training.vae --data DIR --out DIR --minutes 15
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training import code
from training.compose import Composer
from training.recipe import CHANNELS, RECIPES
from training.scenes import random_scene

CROP_PX = 64
BATCH = 8
DECODER_SHARE = 0.75  # of the time; the encoder's task is linear
DISTURBANCE = 0.06  # standard deviation of what is added to the codes; they have 1
_RATE = 2e-3


def build() -> AutoencoderKL:
    """The autoencoder of the embedded model, untrained. Scaled latents are the code itself."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        sample_size=128,
    )


def train(
    vae: AutoencoderKL,
    composer: Composer,
    latent_code: code.Code,
    *,
    minutes: float,
    out: Path,
    seed: int = 0,
) -> None:
    """Decoder first, then encoder; saves now and then."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for part, share in (("decoder", DECODER_SHARE), ("encoder", 1 - DECODER_SHARE)):
        network = getattr(vae, part).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, betas=(0.9, 0.99))
        start, step, seen = time.monotonic(), 0, 0.0
        while (done := (time.monotonic() - start) / (60 * minutes * share)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = _RATE * min(1, step / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
            loss = _loss(vae, part, crops(composer, rng), latent_code)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step, seen = step + 1, seen + loss.item()
            if step % 250 == 0:
                print(f"{part} step {step} loss {seen / 250:.4f} done {done:.2f}", flush=True)
                seen = 0.0
                torch.save(vae.state_dict(), out)
    torch.save(vae.state_dict(), out)


def crops(composer: Composer, rng: np.random.Generator) -> torch.Tensor:
    """Random crops `(8, 3, 64, 64)` of training pictures, aligned to the code's patches."""
    pictures = composer.draw(
        [random_scene(rng, composer.stock) for _ in range(BATCH // 2)], (128, 128), rng
    )
    cut = []
    for picture in pictures:
        for _ in range(2):
            y, x = (code.PATCH_PX * int(k) for k in rng.integers(0, 9, 2))
            cut.append(picture[:, y : y + CROP_PX, x : x + CROP_PX])
    return torch.stack(cut)


def _loss(
    vae: AutoencoderKL, part: str, pictures: torch.Tensor, latent_code: code.Code
) -> torch.Tensor:
    codes = latent_code.encode(pictures)
    if part == "encoder":
        mean = vae.encoder(pictures).chunk(2, dim=1)[0]
        return F.mse_loss(mean, codes)
    drawn = vae.decoder(codes + DISTURBANCE * torch.randn_like(codes))
    edges = sum(F.l1_loss(drawn.diff(dim=d), pictures.diff(dim=d)) for d in (2, 3))
    return F.l1_loss(drawn, pictures) + edges


@torch.inference_mode()
def quality(vae: AutoencoderKL, composer: Composer, latent_code: code.Code) -> dict[str, float]:
    """PSNR in dB of the linear code alone, of its decoder, and of encoder and decoder together."""
    rng = np.random.default_rng(99)
    pictures = composer.draw(
        [random_scene(rng, composer.stock) for _ in range(64)], (128, 128), rng
    )
    codes = latent_code.encode(pictures)
    vae.eval()
    drawn = {
        "linear": latent_code.decode(codes),
        "decoder": vae.decoder(codes),
        "both": vae.decoder(vae.encoder(pictures).chunk(2, dim=1)[0]),
    }
    return {name: _psnr(picture.clamp(-1, 1), pictures) for name, picture in drawn.items()}


def _psnr(drawn: torch.Tensor, pictures: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / F.mse_loss(drawn, pictures)))


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    composer, latent_code = (
        Composer(args.data, RECIPES[args.recipe]),
        code.load(args.out / "code.pt"),
    )
    vae = build()
    vae.decoder.to(memory_format=torch.channels_last)
    train(vae, composer, latent_code, minutes=args.minutes, out=args.out / "vae.pt")
    print(quality(vae, composer, latent_code))


if __name__ == "__main__":
    main()
