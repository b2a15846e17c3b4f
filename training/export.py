"""Write the embedded model as a diffusers folder, from the files of a training run.

The transformer is trained as fluxline's own; its tensors are read back into diffusers' names
through the table that loading uses (`fluxline.models.flux1.names`), so the two cannot disagree.

    python -m training.export --out DIR --recipe cpu
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from fluxline.models.flux1.names import layout_for
from fluxline.models.flux1.transformer import FluxTransformer
from training import checkpoint, code, text, vae
from training.guide import guided
from training.painter import Painter
from training.recipe import RECIPES, T5_LENGTH, Recipe
from training.scenes import SIZES

ASSETS = Path(__file__).parents[1] / "src" / "fluxline" / "assets" / "mini"
DEFAULT_STEPS = 8
DEFAULT_GUIDANCE = 2.0
# mu of the schedule by image tokens: 0 at 128 x 128 px, which it was trained at, more above.
SHIFT = {
    "base_image_seq_len": 64,
    "base_shift": 0.0,
    "max_image_seq_len": 256,
    "max_shift": 0.7,  # log 2: twice the side, twice the noise
}
MAX_STEPS = 50


def diffusers_transformer(network: FluxTransformer) -> FluxTransformer2DModel:
    """Read a transformer back into diffusers' layout."""
    config, trained = network.config, network.state_dict()
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=config.in_channels,
        num_layers=config.depth_double,
        num_single_layers=config.depth_single,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        pooled_projection_dim=config.pooled_dim,
        guidance_embeds=config.guidance,
        axes_dims_rope=config.axes,
    )
    template = model.state_dict()
    place = layout_for(config, list(template))
    tensors = {}
    for name, blank in template.items():
        slots = place(name, blank)
        if slots is None or len(slots) != 1:
            raise ValueError(f"no single place for {name}")
        target, row, part = slots[0]
        tensors[name] = trained[target][row : row + len(part)].reshape(blank.shape).clone()
    model.load_state_dict(tensors)
    return model


def pipeline(run: Path, recipe: Recipe) -> FluxPipeline:
    """Put the parts of a run together as a stock pipeline, fp32; guided, if it has been."""
    painter = Painter(text.untrained(run), recipe)
    painter.load_state_dict(checkpoint.read(run / "transformer")["average"])
    encoders, network = painter.encoders, painter.transformer
    if (run / "guided").exists():
        network = FluxTransformer(guided(recipe.transformer))
        network.load_state_dict(checkpoint.read(run / "guided")["average"])
    text.tie_capitals(encoders)
    autoencoder = vae.build()
    autoencoder.load_state_dict(torch.load(run / "vae.pt", weights_only=True))
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **SHIFT),
        vae=autoencoder.eval(),
        text_encoder=encoders.clip.eval(),
        tokenizer=encoders.clip_words,
        text_encoder_2=encoders.t5.eval(),
        tokenizer_2=encoders.t5_words,
        transformer=diffusers_transformer(network).eval(),
    )


def manifest(latent_code: code.Code, recipe: Recipe, *, is_guided: bool) -> dict[str, object]:
    """What a server must know beyond diffusers' own files."""
    matrix, bias = latent_code.preview()
    sizes = SIZES if recipe.shapes else SIZES[:1]
    return {
        "name": "mini",
        "native_size": list(SIZES[0]),
        "trained_sizes": [list(size) for size in sizes],
        "default_steps": DEFAULT_STEPS,
        "max_steps": MAX_STEPS,
        "text_length": T5_LENGTH,
        "guidance": DEFAULT_GUIDANCE if is_guided else None,
        "preview": {"matrix": matrix, "bias": bias},
    }


def main() -> None:
    """Export; the model card beside the weights is written by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--target", type=Path, default=ASSETS)
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    whole = pipeline(args.out, recipe).to(torch.float16)
    whole.save_pretrained(args.target)
    is_guided = whole.transformer.config.guidance_embeds
    about = manifest(code.load(args.out / "code.pt"), recipe, is_guided=is_guided)
    written = json.dumps(about, indent=1)
    (args.target / "fluxline.json").write_text(written + "\n")
    files = [f for f in args.target.rglob("*") if f.is_file()]
    print(f"{sum(f.stat().st_size for f in files) / 1e6:.1f} MB in {len(files)} files")


if __name__ == "__main__":
    main()
