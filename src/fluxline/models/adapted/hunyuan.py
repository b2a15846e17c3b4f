"""Tencent's HunyuanDiT (BERT and mT5, v-prediction) and HunyuanImage 2.1 (Qwen2.5-VL, a flow)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import (
    SUPPORTED_SHAPE,
    get_resize_crop_region_for_grid,
)
from torch import Tensor

from fluxline.models.adapted.family import Family, Row, Texts, by_prompt, stacked, tokens_of
from fluxline.models.conditioning import Conditioning, Steer, plain_steer


class HunyuanDiT(Family):
    """HunyuanDiT: a transformer with skips on a bilingual CLIP and mT5."""

    name = "hunyuan-dit"
    pipelines = ("HunyuanDiTPipeline",)
    unused = ("safety_checker", "feature_extractor")
    default_steps = 50
    cfg_scale = 5.0
    text_length = 256

    def trained_sizes(self) -> tuple[tuple[int, int], ...]:
        """The shapes it supports."""
        return tuple((width, height) for height, width in SUPPORTED_SHAPE)

    def is_too_long(self, prompt: str) -> bool:
        """mT5 reads more than the CLIP."""
        return tokens_of(self.pipe.tokenizer_2, prompt) > self.text_length

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Both encoders, padded, with masks."""
        asked = {"device": self.device, "dtype": self.dtype, "do_classifier_free_guidance": False}
        clip, _, clip_mask, _ = self.pipe.encode_prompt(
            list(prompts), max_sequence_length=77, text_encoder_index=0, **asked
        )
        text, _, mask, _ = self.pipe.encode_prompt(
            list(prompts), max_sequence_length=self.text_length, text_encoder_index=1, **asked
        )
        return by_prompt(text=text, mask=mask, clip=clip, clip_mask=clip_mask)

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its v, without the variance it learnt beside. Told: drawn from a square of 1024 px."""
        told = [[1024, 1024, row.height, row.width, 0, 0] for row in rows]
        answer: tuple[Tensor] = self.network(
            x,
            timesteps.to(x.dtype),
            encoder_hidden_states=stacked(rows, "clip"),
            text_embedding_mask=stacked(rows, "clip_mask"),
            encoder_hidden_states_t5=stacked(rows, "text"),
            text_embedding_mask_t5=stacked(rows, "mask"),
            image_meta_size=torch.tensor(told, device=x.device, dtype=x.dtype),
            style=torch.zeros(len(rows), device=x.device, dtype=torch.long),
            image_rotary_emb=self._rotary(*x.shape[2:]),
            return_dict=False,
        )
        return answer[0].chunk(2, dim=1)[0]

    def _rotary(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Positions of a latent h x w, on the grid of a picture of 512 px."""
        patch = self.network.config.patch_size
        grid = (h // patch, w // patch)
        crop = get_resize_crop_region_for_grid(grid, 512 // 8 // patch)
        head_dim = self.network.inner_dim // self.network.num_heads
        rotary: tuple[Tensor, Tensor] = get_2d_rotary_pos_embed(
            head_dim, crop, grid, device=self.device, output_type="pt"
        )
        return rotary


class HunyuanImage(Family):
    """HunyuanImage 2.1, whole or distilled; its refiner is another model."""

    name = "hunyuan-image"
    pipelines = ("HunyuanImagePipeline",)
    patch = 1
    default_steps = 50
    cfg_scale = 3.5
    text_length = 1000

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        if pipe.guider is None:  # distilled
            self.default_steps, self.cfg_scale = 8, 1.0
        else:
            self.cfg_scale = pipe.guider.guidance_scale

    def native_size(self, scale: int) -> tuple[int, int]:
        """64 latent positions a side."""
        side = self.pipe.default_sample_size * scale
        return side, side

    def distilled_guidance(self) -> float | None:
        """3.25 for the distilled model."""
        return 3.25 if self.network.config.guidance_embeds else None

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Qwen2.5-VL of the prompt, and ByT5 of what it wants written, each with its mask."""
        text, mask, glyphs, glyph_mask = self.pipe.encode_prompt(
            list(prompts), self.device, batch_size=len(prompts)
        )
        text, glyphs = text.to(self.dtype), glyphs.to(self.dtype)
        return by_prompt(text=text, mask=mask, glyphs=glyphs, glyph_mask=glyph_mask)

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its velocity; of a mean flow, the mean to the next level."""
        config, r, guidance = self.network.config, None, None
        if config.use_meanflow:
            r = timesteps.new_tensor([1000 * row.sigma_next for row in rows]).to(x.dtype)
        if config.guidance_embeds:
            guidance = x.new_tensor([row.guidance for row in rows]) * 1000
        answer: tuple[Tensor] = self.network(
            hidden_states=x,
            timestep=timesteps.to(x.dtype),
            timestep_r=r,
            guidance=guidance,
            encoder_hidden_states=stacked(rows, "text"),
            encoder_attention_mask=stacked(rows, "mask"),
            encoder_hidden_states_2=stacked(rows, "glyphs"),
            encoder_attention_mask_2=stacked(rows, "glyph_mask"),
            return_dict=False,
        )
        return answer[0]

    def steer(self, cfg_scale: float, conditioning: Conditioning) -> Steer:
        """As the model's own guider has it: plain at first, then projected, with a memory.

        cfg_scale acts on the plain steps; what follows has a scale of its own in the checkpoint.
        """
        guider = self.pipe.guider
        if self.pipe.ocr_guider is not None and bool(conditioning.more["glyphs"].any()):
            guider = self.pipe.ocr_guider
        if guider is None:
            return plain_steer(cfg_scale, conditioning)
        return _Guided(guider, cfg_scale)


class _Guided:
    """A job's own copy of a guider of diffusers, counting its evaluations."""

    def __init__(self, guider: Any, cfg_scale: float) -> None:
        self._guider = copy.deepcopy(guider)
        self._guider.guidance_scale = cfg_scale
        self._evaluation = 0

    def __call__(self, velocity: Tensor, negative: Tensor) -> Tensor:
        guider = self._guider
        guider.set_state(step=self._evaluation, num_inference_steps=None, timestep=None)
        guider.prepare_inputs({})  # at step 0 a new memory
        self._evaluation += 1
        mixed: Tensor = guider.forward(velocity[None], negative[None]).pred[0]
        return mixed
