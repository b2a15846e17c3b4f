"""Alibaba's Z-Image: one stream on Qwen3, a flow that runs the other way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxline.models.adapted.family import Family, Row, Texts, tokens_of


class ZImage(Family):
    """Z-Image and its Turbo, whose numbers these are: few steps, no guidance.

    Its pipeline counts guidance from 0, so that a guidance_scale of 4 there is a cfg_scale of 5.
    """

    name = "z-image"
    pipelines = ("ZImagePipeline", "ZImageImg2ImgPipeline")
    default_steps = 9
    cfg_scale = 1.0
    text_length = 512
    mixes_lengths = True
    draws_float32 = True

    def native_size(self, scale: int) -> tuple[int, int]:
        """A megapixel."""
        return 1024, 1024

    def is_too_long(self, prompt: str) -> bool:
        """The chat around it counts."""
        chat = self.pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        return tokens_of(self.pipe.tokenizer, chat) > self.text_length

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Qwen3's last layer but one, without padding."""
        texts, _ = self.pipe.encode_prompt(
            list(prompts),
            self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return [{"text": text.clone()} for text in texts]

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its velocity, which points from noise to picture, turned round."""
        texts = [row.texts["text"] for row in rows]
        answer = self.network(list(x.unsqueeze(2)), timesteps, texts, return_dict=False)[0]
        return -torch.stack([row.squeeze(1) for row in answer])

    def timestep(self, sigma: float) -> float:
        """From 0, noise, to 1, picture."""
        return 1 - sigma
