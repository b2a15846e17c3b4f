"""Train the scorer: a small stock CLIP that says how well a picture fits a prompt.

Its text tower begins as the embedded model's own; its image tower is a vision transformer from
scratch. Both learn contrastively from scenes that are allowed in training. A picture is blurred and
noised at random, since what it will judge is drawn and not pasted together.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision".

    python -m training.scorer --data DIR --run RUN --recipe cpu --minutes 10    # RUN/scorer
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from training import text
from training.captions import caption
from training.compose import Composer
from training.recipe import RECIPES, TEXT_WIDTH, Recipe
from training.scenes import Scene, random_scene, random_size

SIDE = 64  # px of what it looks at
EMBEDDING = 128
BATCH = 128
RATE = 1e-3
TEMPERATURE = 0.07  # at the start; learned


def build(encoders: text.Encoders) -> CLIPModel:
    """A CLIP whose text tower is that of these encoders."""
    vision = CLIPVisionConfig(
        hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=4,
        num_attention_heads=6, image_size=SIDE, patch_size=8, hidden_act="quick_gelu",
        projection_dim=EMBEDDING,
    )  # fmt: skip
    words = CLIPTextConfig(**{**encoders.clip.config.to_dict(), "projection_dim": EMBEDDING})
    model = CLIPModel(
        CLIPConfig(
            text_config=words.to_dict(),
            vision_config=vision.to_dict(),
            projection_dim=EMBEDDING,
            logit_scale_init_value=math.log(1 / TEMPERATURE),
        )
    )
    state = encoders.clip.state_dict()
    model.text_model.load_state_dict({n.removeprefix("text_model."): v for n, v in state.items()})
    return model


def seen(pictures: Tensor, rng: np.random.Generator | None = None) -> Tensor:
    """Pictures `(B, 3, H, W)` in [-1, 1] as the tower sees them: squeezed to 64 x 64; rng: worn."""
    small = F.interpolate(pictures, size=(SIDE, SIDE), mode="bicubic", antialias=True)
    if rng is None:
        return small
    if rng.random() < 0.5:
        small = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return small + float(rng.uniform(0, 0.1)) * torch.randn_like(small)


def batch(
    composer: Composer, recipe: Recipe, rng: np.random.Generator, count: int
) -> tuple[list[str], Tensor]:
    """Captions that say something, and what they are said of."""
    width, height = random_size(rng, recipe)
    size = (width // 2, height // 2)  # the tower sees no more, and it is drawn in a quarter
    texts: list[str] = []
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, composer.stock)
        if said := caption(scene, rng, composer.stock):
            texts.append(said)
            scenes.append(scene)
    return texts, seen(composer.draw(scenes, size, rng), rng)


def embedded(model: CLIPModel, long: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors `(B, 128)` of token ids and of pictures."""
    said = model.text_projection(model.text_model(long).pooler_output)
    shown = model.visual_projection(model.vision_model(pictures).pooler_output)
    return F.normalize(said, dim=-1), F.normalize(shown, dim=-1)


def train(
    composer: Composer, encoders: text.Encoders, *, minutes: float, seed: int = 0
) -> CLIPModel:
    """Train for so many minutes."""
    torch.manual_seed(seed)
    rng, recipe = np.random.default_rng([seed, 3]), composer.stock.recipe
    model = build(encoders).train()
    towers = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    words = [*model.text_model.parameters(), *model.text_projection.parameters()]
    groups = [{"params": [*towers, model.logit_scale], "rate": RATE}]
    groups += [{"params": words, "rate": RATE / 4}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    start, step, right = time.monotonic(), 0, []
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            rate = min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
            group["lr"] = group["rate"] * rate
        texts, pictures = batch(composer, recipe, rng, BATCH)
        said, shown = embedded(model, encoders.tokens(texts)[1], pictures)
        logits = model.logit_scale.exp().clamp(max=100) * said @ shown.T
        own = torch.arange(BATCH)
        optimizer.zero_grad()
        (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        right.append((logits.argmax(1) == own).float().mean().item())
        if step % 50 == 0:
            print(f"step {step} {60 * minutes * done:.0f} s first of {BATCH}: {np.mean(right):.3f}",
                  flush=True)  # fmt: skip
            right.clear()
    return model.eval()


def save(model: CLIPModel, encoders: text.Encoders, folder: Path) -> None:
    """Write a stock CLIP folder in half precision."""
    model.to(torch.float16).save_pretrained(folder)
    encoders.clip_words.save_pretrained(folder)
    looks = {
        "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 3,
        "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "do_convert_rgb": True, "image_processor_type": "CLIPImageProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(looks, indent=1) + "\n")


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoders = text.load(args.run)
    model = train(Composer(args.data, RECIPES[args.recipe]), encoders, minutes=args.minutes)
    save(model, encoders, args.run / "scorer")


if __name__ == "__main__":
    main()
