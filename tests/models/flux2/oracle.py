"""The oracle: diffusers' FLUX.2 on the same random weights."""

from dataclasses import dataclass

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from fluxline.models.flux2.latents import image_ids, reference_ids, text_ids
from fluxline.models.flux2.names import layout_for
from fluxline.models.flux2.transformer import Flux2Config, Flux2Transformer
from fluxline.weights.stream import assign


def small_config(
    *,
    guidance: bool = False,
    head_dim: int = 128,
    heads: int = 2,
    double: int = 2,
    single: int = 3,
    text_dim: int = 48,
) -> Flux2Config:
    """The true architecture, made small: only depth, heads and text widths differ."""
    return Flux2Config(
        in_channels=128,
        out_channels=128,
        depth_double=double,
        depth_single=single,
        head_dim=head_dim,
        heads=heads,
        inner=3 * heads * head_dim,
        text_dim=text_dim,
        guidance=guidance,
        axes=(head_dim // 4,) * 4,
        theta=2000,
    )


def diffusers_model(config: Flux2Config, seed: int = 0) -> Flux2Transformer2DModel:
    """Random but well-scaled: every part of the network matters to the answer."""
    torch.manual_seed(seed)
    model = Flux2Transformer2DModel(
        in_channels=config.in_channels,
        num_layers=config.depth_double,
        num_single_layers=config.depth_single,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        mlp_ratio=config.inner / config.hidden,
        axes_dims_rope=config.axes,
        rope_theta=config.theta,
        guidance_embeds=config.guidance,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(2 + 0.5 * torch.randn_like(parameter))  # attention that chooses
            elif "modulation" in name or "attn" in name:
                parameter.mul_(3)  # gates that let it through
    return model.eval()


def ours_from(theirs: Flux2Transformer2DModel, config: Flux2Config) -> Flux2Transformer:
    """Our transformer with the same weights, through the real loading path."""
    state = theirs.state_dict()
    ours = Flux2Transformer(config).eval()
    assign(ours, state.items(), layout_for(config, list(state)), source="oracle")
    return ours


@dataclass(frozen=True)
class Inputs:
    """R rows; positions are a list because rows of equal N may differ in shape."""

    x: Tensor
    text: Tensor
    sigma: Tensor
    guidance: Tensor | None
    ids: list[Tensor]
    text_length: int
    references: Tensor | None

    @classmethod
    def random(
        cls,
        config: Flux2Config,
        shapes: list[tuple[int, int]],
        *,
        text_length: int = 12,
        references: tuple[tuple[int, int], ...] = (),
    ) -> "Inputs":
        """One row for each shape (h, w) in tokens; all must hold the same number of tokens.

        references: the sizes of pictures that every row has beside it.
        """
        g = torch.Generator().manual_seed(7)
        rows = len(shapes)
        tokens = shapes[0][0] * shapes[0][1]
        beside = sum(h * w for h, w in references)
        ids = [image_ids(h, w) for h, w in shapes]
        if references:
            ids = [torch.cat((own, reference_ids(references))) for own in ids]
        return cls(
            x=torch.randn(rows, tokens, config.in_channels, generator=g),
            text=torch.randn(rows, text_length, config.text_dim, generator=g),
            sigma=torch.rand(rows, generator=g),
            guidance=1 + 5 * torch.rand(rows, generator=g) if config.guidance else None,
            ids=ids,
            text_length=text_length,
            references=torch.randn(rows, beside, config.in_channels, generator=g)
            if references
            else None,
        )


@torch.inference_mode()
def evaluate_ours(model: Flux2Transformer, inputs: Inputs) -> Tensor:
    """All rows in one forward."""
    ids = torch.stack([torch.cat((text_ids(inputs.text_length), i)) for i in inputs.ids])
    modulation = model.modulate(inputs.sigma, inputs.guidance)
    text = model.embed_text(inputs.text)
    x = inputs.x
    if inputs.references is not None:
        x = torch.cat((x, inputs.references), dim=1)
    return model(x, text, modulation, model.rope(ids))[:, : inputs.x.shape[1]]


@torch.inference_mode()
def evaluate_theirs(model: Flux2Transformer2DModel, inputs: Inputs) -> Tensor:
    """Row by row: diffusers' positions cannot differ within a batch."""
    tokens = inputs.x.shape[1]
    x = inputs.x
    if inputs.references is not None:
        x = torch.cat((x, inputs.references), dim=1)
    return torch.cat(
        [
            model(
                hidden_states=x[r : r + 1],
                encoder_hidden_states=inputs.text[r : r + 1],
                timestep=inputs.sigma[r : r + 1],
                guidance=None if inputs.guidance is None else inputs.guidance[r : r + 1],
                img_ids=ids,
                txt_ids=text_ids(inputs.text_length),
                return_dict=False,
            )[0][:, :tokens]
            for r, ids in enumerate(inputs.ids)
        ]
    )
