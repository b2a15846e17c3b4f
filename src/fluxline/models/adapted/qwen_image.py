"""Alibaba's Qwen-Image: two streams on Qwen2.5-VL, a flow."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fluxline.models.adapted.family import Family, Row, Texts, tokens_of
from fluxline.models.conditioning import Conditioning, Steer


class QwenImage(Family):
    """Qwen-Image. Its guided velocity keeps, token by token, the length of the unguided one."""

    name = "qwen-image"
    pipelines = ("QwenImagePipeline", "QwenImageImg2ImgPipeline")
    default_steps = 50
    cfg_scale = 4.0
    text_length = 512
    mixes_lengths = True

    def native_size(self, scale: int) -> tuple[int, int]:
        """128 latent positions a side."""
        side = self.pipe.default_sample_size * scale
        return side, side

    def is_too_long(self, prompt: str) -> bool:
        """The template around it counts, but for its opening."""
        template = self.pipe.prompt_template_encode.format(prompt)
        opening = int(self.pipe.prompt_template_encode_start_idx)
        return tokens_of(self.pipe.tokenizer, template) - opening > self.text_length

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Each prompt alone, as long as it is."""
        return [{"text": self._encoded(prompt)} for prompt in prompts]

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its velocity; shorter texts are padded, and the padding masked."""
        h, w = x.shape[2] // self.patch, x.shape[3] // self.patch
        tokens = rearrange(x, "r c (h p) (w q) -> r (h w) (c p q)", p=self.patch, q=self.patch)
        lengths = [len(row.texts["text"]) for row in rows]
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # (R, L)
        answer: tuple[Tensor] = self.network(
            hidden_states=tokens,
            timestep=timesteps.to(x.dtype) / 1000,
            encoder_hidden_states=pad_sequence([row.texts["text"] for row in rows], True),
            encoder_hidden_states_mask=None if mask.all() else mask.to(x.device),
            img_shapes=[[(1, h, w)]] * len(rows),
            return_dict=False,
        )
        velocity: Tensor = rearrange(
            answer[0], "r (h w) (c p q) -> r c (h p) (w q)", h=h, p=self.patch, q=self.patch
        )
        return velocity

    def steer(self, cfg_scale: float, conditioning: Conditioning) -> Steer:
        """Guided, then brought back to the length it had."""

        def mixed(velocity: Tensor, negative: Tensor) -> Tensor:
            guided = negative + cfg_scale * (velocity - negative)
            length: Tensor = velocity.norm(dim=-1, keepdim=True)
            rescaled: Tensor = guided * (length / guided.norm(dim=-1, keepdim=True))
            return rescaled

        return mixed

    def _encoded(self, prompt: str) -> Tensor:
        text, _ = self.pipe.encode_prompt(prompt, self.device, max_sequence_length=self.text_length)
        found: Tensor = text[0].clone()
        return found
