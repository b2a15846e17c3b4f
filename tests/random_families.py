"""Random small models of other families, of their true architectures, saved as the real ones are.

The tokenizers are made here too: letters or bytes, no merges.
"""

import json
import string
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

LETTERS = [*string.ascii_lowercase, *string.digits, ","]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDTH = 32  # of text encoders


def save_stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion 1.5, with the scheduler that it comes with."""
    return _save(
        diffusers.StableDiffusionPipeline(
            unet=_unet(),
            vae=_vae(4),
            text_encoder=_clip(),
            tokenizer=_clip_words(),
            scheduler=diffusers.PNDMScheduler(
                **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        folder,
    )


def save_stable_diffusion_v(folder: Path) -> Path:
    """Stable Diffusion 2.1: the same, predicting v."""
    save_stable_diffusion(folder)
    config = folder / "scheduler" / "scheduler_config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "prediction_type": "v_prediction"}))
    return folder


def save_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL."""
    return _save(
        diffusers.StableDiffusionXLPipeline(
            unet=_unet(
                transformer_layers_per_block=(1, 2),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + WIDTH,
                cross_attention_dim=2 * WIDTH,
                use_linear_projection=True,
            ),
            vae=_vae(4),
            text_encoder=_clip(),
            tokenizer=_clip_words(),
            text_encoder_2=_clip(projects=True),
            tokenizer_2=_clip_words(),
            scheduler=diffusers.EulerDiscreteScheduler(
                **BETAS, timestep_spacing="leading", steps_offset=1
            ),
            add_watermarker=False,
        ),
        folder,
    )


def save_sd3(folder: Path) -> Path:
    """Stable Diffusion 3.5 medium: the first block has a second attention."""
    return _save(
        diffusers.StableDiffusion3Pipeline(
            transformer=diffusers.SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=16,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=2 * WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=2 * WIDTH,
                out_channels=16,
                pos_embed_max_size=24,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            vae=_vae(16),
            text_encoder=_clip(projects=True),
            tokenizer=_clip_words(),
            text_encoder_2=_clip(projects=True),
            tokenizer_2=_clip_words(),
            text_encoder_3=_t5(2 * WIDTH),
            tokenizer_3=_t5_words(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        ),
        folder,
    )


def save_hunyuan_dit(folder: Path) -> Path:
    """HunyuanDiT 1.1: told the style and the sizes."""
    words = _t5_words()
    bert_words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    bert_words += [f"##{letter}" for letter in LETTERS]
    bert = BertConfig(
        vocab_size=len(bert_words),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=37,
    )
    return _save(
        diffusers.HunyuanDiTPipeline(
            transformer=diffusers.HunyuanDiT2DModel(
                sample_size=8,
                num_layers=4,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=4,
                in_channels=4,
                hidden_size=32,
                cross_attention_dim=WIDTH,
                cross_attention_dim_t5=WIDTH,
                pooled_projection_dim=16,
            ),
            vae=_vae(4),
            text_encoder=BertModel(bert),
            tokenizer=BertTokenizer(vocab={word: i for i, word in enumerate(bert_words)}),
            text_encoder_2=_t5(WIDTH),
            tokenizer_2=words,
            scheduler=diffusers.DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.03,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                steps_offset=1,
                clip_sample=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        folder,
        trained_sizes=[],
    )


def save_hunyuan_image(folder: Path, *, is_distilled: bool = False) -> Path:
    """HunyuanImage 2.1, with its two guiders, or distilled, with none."""
    guiders = {"guider": None, "ocr_guider": None}
    if not is_distilled:
        guiders = {
            "guider": diffusers.AdaptiveProjectedMixGuidance(
                adaptive_projected_guidance_start_step=1
            ),
            "ocr_guider": diffusers.AdaptiveProjectedMixGuidance(
                adaptive_projected_guidance_start_step=3, adaptive_projected_guidance_scale=5.0
            ),
        }
    return _save(
        diffusers.HunyuanImagePipeline(
            transformer=diffusers.HunyuanImageTransformer2DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                patch_size=(1, 1),
                guidance_embeds=is_distilled,
                use_meanflow=is_distilled,
                text_embed_dim=WIDTH,
                text_embed_2_dim=WIDTH,
                rope_axes_dim=(8, 8),
            ),
            vae=diffusers.AutoencoderKLHunyuanImage(
                in_channels=3,
                out_channels=3,
                latent_channels=8,
                block_out_channels=(32, 32, 32, 32, 32, 32),
                layers_per_block=1,
                spatial_compression_ratio=32,
                sample_size=64,
                scaling_factor=0.75,
            ),
            text_encoder=_qwen_vl(),
            tokenizer=_bytes(),
            text_encoder_2=_t5(WIDTH, 259 + 125),
            tokenizer_2=ByT5Tokenizer(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
            **guiders,
        ),
        folder,
    )


def save_hunyuan_image_distilled(folder: Path) -> Path:
    """A mean flow that reads its guidance."""
    return save_hunyuan_image(folder, is_distilled=True)


def save_qwen_image(folder: Path) -> Path:
    """Qwen-Image, its shift by size and its sigmas stretched."""
    return _save(
        diffusers.QwenImagePipeline(
            transformer=diffusers.QwenImageTransformer2DModel(
                in_channels=64,
                out_channels=16,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(8, 4, 4),
            ),
            vae=diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1),
            text_encoder=_qwen_vl(),
            tokenizer=_bytes(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
        ),
        folder,
    )


def save_z_image(folder: Path) -> Path:
    """Z-Image Turbo."""
    qwen = Qwen3Config(
        vocab_size=len(_bytes()),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    return _save(
        diffusers.ZImagePipeline(
            transformer=diffusers.ZImageTransformer2DModel(
                in_channels=16,
                dim=32,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=WIDTH,
                axes_dims=[8, 4, 4],
                axes_lens=[512, 32, 32],
            ),
            vae=_vae(16),
            text_encoder=Qwen3Model(qwen),
            tokenizer=_bytes(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        ),
        folder,
    )


def save_sana(folder: Path) -> Path:
    """Sana, with the DPM-Solver that it comes with."""
    words = _gemma_words()
    gemma = Gemma2Config(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return _save(
        diffusers.SanaPipeline(
            transformer=diffusers.SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=16,
                num_cross_attention_heads=2,
                cross_attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=WIDTH,
                sample_size=2,
            ),
            vae=diffusers.AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types=("ResBlock",) * 6,
                decoder_block_types=("ResBlock",) * 6,
                encoder_block_out_channels=(8, 8, 8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8, 8, 8),
                encoder_layers_per_block=(1,) * 6,
                decoder_layers_per_block=(1,) * 6,
                encoder_qkv_multiscales=((),) * 6,
                decoder_qkv_multiscales=((),) * 6,
                scaling_factor=0.41,
            ),
            text_encoder=Gemma2Model(gemma),
            tokenizer=words,
            scheduler=diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        ),
        folder,
    )


def save_aura_flow(folder: Path) -> Path:
    """AuraFlow."""
    return _save(
        diffusers.AuraFlowPipeline(
            transformer=diffusers.AuraFlowTransformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                caption_projection_dim=32,
                out_channels=4,
                pos_embed_max_size=64,
            ),
            vae=_vae(4),
            text_encoder=UMT5EncoderModel(UMT5Config(**_t5_sizes(WIDTH))),
            tokenizer=_t5_words(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        ),
        folder,
    )


def save_pixart_sigma(folder: Path) -> Path:
    """PixArt-Sigma, with the DPM-Solver that it comes with."""
    return _save(
        diffusers.PixArtSigmaPipeline(
            transformer=diffusers.PixArtTransformer2DModel(
                sample_size=8,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_channels=WIDTH,
                in_channels=4,
                out_channels=8,
                cross_attention_dim=32,
                use_additional_conditions=False,
            ),
            vae=_vae(4),
            text_encoder=_t5(WIDTH),
            tokenizer=_t5_words(),
            scheduler=diffusers.DPMSolverMultistepScheduler(),
        ),
        folder,
    )


SAVERS: dict[str, Callable[[Path], Path]] = {
    "sd": save_stable_diffusion,
    "sd-v": save_stable_diffusion_v,
    "sdxl": save_sdxl,
    "sd3": save_sd3,
    "hunyuan-dit": save_hunyuan_dit,
    "hunyuan-image": save_hunyuan_image,
    "hunyuan-image-distilled": save_hunyuan_image_distilled,
    "qwen-image": save_qwen_image,
    "z-image": save_z_image,
    "sana": save_sana,
    "aura-flow": save_aura_flow,
    "pixart-sigma": save_pixart_sigma,
}


def _save(pipe: diffusers.DiffusionPipeline, folder: Path, **about) -> Path:
    torch.manual_seed(1)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    with torch.no_grad():  # so that no part of it is as good as absent
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1 and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.normal_(std=0.1)
    pipe.save_pretrained(folder)
    about = {"native_size": [64, 64], "default_steps": 3, **about}
    (folder / "fluxline.json").write_text(json.dumps(about))
    return folder


def _unet(**options) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **options,
        }
    )


def _vae(channels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        scaling_factor=0.36,
        shift_factor=0.12 if channels == 16 else None,
    )


def _clip_words() -> CLIPTokenizer:
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77
    )


def _clip(*, projects: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    words = _clip_words()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_factor=5.0,
    )
    return CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)


def _t5_words() -> T5Tokenizer:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0)]
    return T5Tokenizer(vocab=words + [(c, -5.0) for c in LETTERS], extra_ids=0)


def _t5(width: int, vocabulary: int | None = None) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_t5_sizes(width, vocabulary)))


def _t5_sizes(width: int, vocabulary: int | None = None) -> dict[str, object]:
    return {
        "vocab_size": vocabulary or len(_t5_words()),
        "d_model": width,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }


def _bytes() -> Qwen2Tokenizer:
    words = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=words, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    return tokenizer


def _qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(_bytes()),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
    }
    eyes = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=eyes)
    return Qwen2_5_VLForConditionalGeneration(config)


def _gemma_words() -> GemmaTokenizer:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *string.printable[:94]]
    return GemmaTokenizer(vocab={word: i for i, word in enumerate(dict.fromkeys(words))}, merges=[])
