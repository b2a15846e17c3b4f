"""Take the shipped model up again, to train it further on a machine that has only the repository.

    python -m training.resume --out RUN

Writes the tokenizers, code.pt, text.pt, vae.pt and transformer/ as the other scripts expect them.
The optimisers start anew: only what was learned is shipped, not its momentum. The latent code is
`latent_code.safetensors` beside this file, since eigenvectors may change sign between machines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxline.engine.build import open_model
from fluxline.models.flux1.transformer import FluxTransformer
from fluxline.ops.timesteps import timestep_features
from training import checkpoint, code, text, vae
from training.export import ASSETS
from training.painter import Painter
from training.recipe import RECIPES, Recipe

LATENT_CODE = Path(__file__).parent / "latent_code.safetensors"


def resume(out: Path, recipe: Recipe) -> None:
    """Write a run's files from what is shipped."""
    out.mkdir(parents=True, exist_ok=True)
    code.save(shipped_code(), out / "code.pt")
    encoders = text.untrained(ASSETS)
    encoders.t5.load_state_dict(_weights("text_encoder_2"), strict=False)
    encoders.clip.load_state_dict(_weights("text_encoder"), strict=False)
    text.save(encoders, out)
    autoencoder = vae.build()
    autoencoder.load_state_dict(_weights("vae"))
    torch.save(autoencoder.state_dict(), out / "vae.pt")
    painter = Painter(encoders, recipe)
    painter.transformer.load_state_dict(unguided(open_model(str(ASSETS), "cpu").transformer))
    checkpoint.write(out / "transformer", {"average": painter.state_dict()})


def unguided(network: FluxTransformer) -> dict[str, Tensor]:
    """Weights without a guidance embedding that draw as these do at guidance 1.

    What the embedding adds there is the same in every row, so it goes into a bias beside it.
    """
    state = dict(network.state_dict())
    if network.guidance_in is not None:
        told = network.guidance_in(timestep_features(torch.ones(1)))[0]
        state["pooled_in.out.bias"] = state["pooled_in.out.bias"] + told
    return {n: v for n, v in state.items() if not n.startswith("guidance_in.")}


def shipped_code() -> code.Code:
    """The latent code that the shipped autoencoder reads and writes."""
    parts = load_file(LATENT_CODE)
    return code.Code(
        encode_matrix=parts["encode"], decode_matrix=parts["decode"], mean=parts["mean"]
    )


def keep_code(out: Path) -> None:
    """Put a run's code where it is shipped; part of a release of new weights."""
    parts = torch.load(out / "code.pt", weights_only=True)
    save_file({name: part.contiguous() for name, part in parts.items()}, LATENT_CODE)


def _weights(part: str) -> dict[str, torch.Tensor]:
    (file,) = (ASSETS / part).glob("*.safetensors")
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def main() -> None:
    """Resume, or with --keep-code ship the code of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--keep-code", action="store_true")
    args = parser.parse_args()
    if args.keep_code:
        keep_code(args.out)
    else:
        resume(args.out, RECIPES[args.recipe])


if __name__ == "__main__":
    main()
