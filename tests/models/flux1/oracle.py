"""The oracle: diffusers' FLUX on the same random weights."""

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from fluxline.models.flux1.latents import image_ids, text_ids
from fluxline.models.flux1.names import layout_for
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from fluxline.weights.stream import assign


def small_config(
    *,
    guidance: bool = False,
    head_dim: int = 128,
    heads: int = 2,
    double: int = 2,
    single: int = 3,
    in_channels: int = 64,
) -> FluxConfig:
    """The true architecture, made small: only depth, heads and text widths differ."""
    eighth = head_dim // 8
    return FluxConfig(
        in_channels=in_channels,
        out_channels=64,
        depth_double=double,
        depth_single=single,
        head_dim=head_dim,
        heads=heads,
        text_dim=48,
        pooled_dim=40,
        guidance=guidance,
        axes=(eighth, head_dim // 2 - eighth // 2, head_dim // 2 - eighth // 2),
    )


def diffusers_model(
    config: FluxConfig, seed: int = 0, *, heed: float = 1.0
) -> FluxTransformer2DModel:
    """Random but well-scaled: every part of the network matters to the answer.

    heed: how much louder than that tokens hear each other.
    """
    torch.manual_seed(seed)
    model = FluxTransformer2DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth_double,
        num_single_layers=config.depth_single,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        pooled_projection_dim=config.pooled_dim,
        guidance_embeds=config.guidance,
        axes_dims_rope=config.axes,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm_" in name and name.endswith("weight") and parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.normal_(std=0.1)
            elif name.endswith(("to_v.weight", "to_out.0.weight", "proj_out.weight")):
                parameter.mul_(heed)
    return model.eval()


def ours_from(theirs: FluxTransformer2DModel, config: FluxConfig) -> FluxTransformer:
    """Our transformer with the same weights, through the real loading path."""
    state = theirs.state_dict()
    ours = FluxTransformer(config).eval()
    assign(ours, state.items(), layout_for(config, list(state)), source="oracle")
    return ours


@dataclass(frozen=True)
class Inputs:
    """R rows; positions are a list because rows of equal N may differ in shape."""

    x: Tensor
    text: Tensor
    pooled: Tensor
    sigma: Tensor
    guidance: Tensor | None
    ids: list[Tensor]
    text_length: int

    @classmethod
    def random(
        cls, config: FluxConfig, shapes: list[tuple[int, int]], *, text_length: int = 12
    ) -> "Inputs":
        """One row for each latent shape (h, w); all must hold the same number of tokens."""
        g = torch.Generator().manual_seed(7)
        rows = len(shapes)
        tokens = shapes[0][0] * shapes[0][1] // 4
        return cls(
            x=torch.randn(rows, tokens, config.in_channels, generator=g),
            text=torch.randn(rows, text_length, config.text_dim, generator=g),
            pooled=torch.randn(rows, config.pooled_dim, generator=g),
            sigma=torch.rand(rows, generator=g),
            guidance=1 + 5 * torch.rand(rows, generator=g) if config.guidance else None,
            ids=[image_ids(h, w) for h, w in shapes],
            text_length=text_length,
        )


@torch.inference_mode()
def evaluate_ours(model: FluxTransformer, inputs: Inputs) -> Tensor:
    """All rows in one forward."""
    ids = torch.stack([torch.cat((text_ids(inputs.text_length), i)) for i in inputs.ids])
    modulation = model.modulate(inputs.sigma, inputs.guidance, inputs.pooled)
    return model(inputs.x, model.embed_text(inputs.text), modulation, model.rope(ids))


@torch.inference_mode()
def evaluate_theirs(model: FluxTransformer2DModel, inputs: Inputs) -> Tensor:
    """Row by row: diffusers' positions cannot differ within a batch."""
    return torch.cat(
        [
            model(
                hidden_states=inputs.x[r : r + 1],
                encoder_hidden_states=inputs.text[r : r + 1],
                pooled_projections=inputs.pooled[r : r + 1],
                timestep=inputs.sigma[r : r + 1],
                guidance=None if inputs.guidance is None else inputs.guidance[r : r + 1],
                img_ids=ids,
                txt_ids=text_ids(inputs.text_length),
                return_dict=False,
            )[0]
            for r, ids in enumerate(inputs.ids)
        ]
    )
