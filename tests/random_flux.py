"""Random small FLUX.1 models of the true architecture, saved as diffusers saves the real ones."""

import json
import string
import warnings
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.siglip import SiglipImageProcessorPil

from fluxline.models.flux1.transformer import FluxConfig
from tests.models.flux1.oracle import diffusers_model

TEXT_LENGTH = 12


def save_random_flux(
    folder: Path,
    config: FluxConfig,
    *,
    dynamic_shift: bool = False,
    kind: type[DiffusionPipeline] = FluxPipeline,
    heed: float = 1.0,
    **more: object,
) -> Path:
    """Write a whole model folder; its pictures are coloured noise, and all its paths are used.

    kind: the pipeline that its index names. heed: see `diffusers_model`. more: what it says of
    itself.
    """
    torch.manual_seed(1)
    letters = [*string.ascii_lowercase, *string.digits, ","]
    t5_words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0)]
    t5_tokenizer = T5Tokenizer(vocab=t5_words + [(c, -5.0) for c in letters], extra_ids=0)
    clip_words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    clip_tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(clip_words)}, merges=[], model_max_length=16
    )
    kind(
        transformer=diffusers_model(config, heed=heed),
        vae=_vae(),
        text_encoder=_clip(config, clip_tokenizer),
        tokenizer=clip_tokenizer,
        text_encoder_2=_t5(config, t5_tokenizer),
        tokenizer_2=t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0 if not dynamic_shift else 3.0, use_dynamic_shifting=dynamic_shift
        ),
    ).save_pretrained(folder)
    about = {
        "native_size": [64, 64],
        "text_length": TEXT_LENGTH,
        "default_steps": 3,
        "preview": {"matrix": [[0.1, 0.0, -0.1]] * 16, "bias": [0, 0, 0]},
        **more,
    }
    (folder / "fluxline.json").write_text(json.dumps(about))
    return folder


def save_random_redux(folder: Path, config: FluxConfig) -> Path:
    """Lay the parts of a Redux into a folder: it sees 28 px in four tokens."""
    torch.manual_seed(2)
    siglip = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    SiglipVisionModel(siglip).save_pretrained(folder / "image_encoder")
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(
        folder / "feature_extractor"
    )
    projection = ReduxImageEncoder(redux_dim=32, txt_in_features=config.text_dim)
    projection.save_pretrained(folder / "image_embedder")
    return folder


def save_random_controlnet(folder: Path, config: FluxConfig) -> Path:
    """Lay a ControlNet into a model's folder. config: its own numbers."""
    torch.manual_seed(4)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of diffusers to itself
        net = FluxControlNetModel(
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
    for layer in (*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder):
        torch.nn.init.normal_(layer.weight, std=0.2)  # its own beginning is nought
        torch.nn.init.normal_(layer.bias, std=0.1)
    net.save_pretrained(folder / "controlnet")
    return folder


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.36,
        shift_factor=0.12,
    ).eval()


def _clip(config: FluxConfig, words: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=config.pooled_dim,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            initializer_factor=5.0,
        )
    ).eval()


def _t5(config: FluxConfig, words: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=config.text_dim,
            d_kv=12,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
