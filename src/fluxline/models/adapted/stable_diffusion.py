"""Stable Diffusion 1.5, 2.1 and XL (U-Nets on CLIP text), and 3 and 3.5 (a transformer, T5 too)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxline.models.adapted.family import Family, Row, Texts, by_prompt, stacked, tokens_of


class StableDiffusion(Family):
    """1.5 and 2.1: a U-Net that reads the text of one CLIP."""

    name = "sd"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    unused = ("safety_checker", "feature_extractor", "image_encoder")
    patch = 1
    default_steps = 50
    cfg_scale = 7.5
    text_length = 77

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """One CLIP's last layer."""
        text, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, False)
        return by_prompt(text=text)

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its noise, or its v."""
        text = stacked(rows, "text")
        answer: tuple[Tensor] = self.network(
            x, timesteps, encoder_hidden_states=text, return_dict=False
        )
        return answer[0]


class StableDiffusionXL(Family):
    """XL: a U-Net that reads two CLIPs, and the size it draws."""

    name = "sdxl"
    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    unused = ("feature_extractor", "image_encoder")
    patch = 1
    default_steps = 50
    cfg_scale = 5.0
    text_length = 77

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Both CLIPs' last layer but one; of an empty prompt zeros, where the model wants that."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        if self.pipe.config.force_zeros_for_empty_prompt:
            speaks = torch.tensor([bool(p) for p in prompts], device=self.device)
            text, pooled = text * speaks[:, None, None], pooled * speaks[:, None]
        return by_prompt(text=text, pooled=pooled)

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its noise, or its v, told that pictures are whole and of the size drawn."""
        text = stacked(rows, "text")
        sizes = [[row.height, row.width, 0, 0, row.height, row.width] for row in rows]
        told = {
            "text_embeds": stacked(rows, "pooled"),
            "time_ids": torch.tensor(sizes, device=x.device, dtype=text.dtype),
        }
        answer: tuple[Tensor] = self.network(
            x, timesteps, encoder_hidden_states=text, added_cond_kwargs=told, return_dict=False
        )
        return answer[0]


class StableDiffusion3(Family):
    """3 and 3.5: a transformer on two CLIPs and T5, a flow."""

    name = "sd3"
    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    unused = ("feature_extractor", "image_encoder")
    default_steps = 28
    cfg_scale = 7.0
    text_length = 256
    own_spacing = True

    def is_too_long(self, prompt: str) -> bool:
        """T5 reads the most, where there is one."""
        if self.pipe.text_encoder_3 is None:
            return tokens_of(self.pipe.tokenizer, prompt) > int(self.pipe.tokenizer_max_length)
        return tokens_of(self.pipe.tokenizer_3, prompt) > self.text_length

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Two CLIPs side by side, then T5."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return by_prompt(text=text, pooled=pooled)

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its velocity."""
        answer: tuple[Tensor] = self.network(
            hidden_states=x,
            timestep=timesteps,
            encoder_hidden_states=stacked(rows, "text"),
            pooled_projections=stacked(rows, "pooled"),
            return_dict=False,
        )
        return answer[0]
