"""All that learns together: both text encoders and the transformer, with the loss of flow matching.

x_sigma = (1 - sigma) x0 + sigma noise, and the model predicts noise - x0, as FLUX does.
"""

from __future__ import annotations

import torch
from torch import nn

from fluxline.models.flux1.latents import image_ids, text_ids
from fluxline.models.flux1.transformer import FluxTransformer
from training import text
from training.recipe import T5_LENGTH, Recipe

IGNORANCE = 2.0  # loss of a row about which nothing is known; a greater one weighs no more,
# since a warm start may answer new words with numbers that would drown all others


def untrained(recipe: Recipe) -> FluxTransformer:
    """A transformer whose blocks and output start as zero (adaLN-Zero)."""
    model = FluxTransformer(recipe.transformer)
    for layer in (model.modulation, model.image_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


class Painter(nn.Module):
    """All that learns: both text encoders and the transformer."""

    def __init__(self, encoders: text.Encoders, recipe: Recipe) -> None:
        super().__init__()
        self.encoders, self.transformer = encoders, untrained(recipe)

    def rope(self, size: tuple[int, int]) -> torch.Tensor:
        """Rotations (1, S, 32) of a picture of this size in px."""
        ids = torch.cat((text_ids(T5_LENGTH), image_ids(size[1] // 8, size[0] // 8)))
        return self.transformer.rope(ids.to(self.transformer.image_in.weight.device))[None]

    def forward(
        self,
        tokens: tuple[torch.Tensor, torch.Tensor],
        x0: torch.Tensor,
        sigma: torch.Tensor,
        rope: torch.Tensor,
    ) -> torch.Tensor:
        """Return the flow-matching loss of tokens `(B, L)`, latents `(B, N, 64)`, sigma `(B,)`."""
        noise = torch.randn_like(x0)
        states, pooled = self.encoders(*tokens)
        model = self.transformer
        velocity = model(
            torch.lerp(x0, noise, sigma[:, None, None]),
            model.embed_text(states),
            model.modulate(sigma, None, pooled),
            rope,
        )
        row = (velocity - (noise - x0)).square().mean((1, 2))
        return (row / (row.detach() / IGNORANCE).clamp(min=1)).mean()
