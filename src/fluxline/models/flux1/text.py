"""The two text encoders of FLUX.1: CLIP for one vector, T5 for a sequence.

Prompts are padded to a fixed length and the padding is attended to, as FLUX was trained.
Source: black-forest-labs/flux, conditioner.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxline.models.base import Network


@dataclass(frozen=True, slots=True)
class EncodedText:
    """sequence: (P, L, text_dim). pooled: (P, pooled_dim). truncated: P truths."""

    sequence: Tensor
    pooled: Tensor
    truncated: list[bool]


class TextEncoders:
    """CLIP and T5 with their tokenizers. Thread: the engine's.

    length: tokens of the T5 sequence. CLIP's length is its tokenizer's own.
    """

    def __init__(
        self,
        *,
        clip: torch.nn.Module,
        clip_tokenizer: Any,  # transformers' tokenizers share no useful type
        t5: Any,  # transformers' T5EncoderModel
        t5_tokenizer: Any,
        length: int,
    ) -> None:
        self._clip, self._clip_tokenizer = clip, clip_tokenizer
        self._t5, self._t5_tokenizer = t5, t5_tokenizer
        self.length = length
        self.device = next(t5.parameters()).device  # where it computes

    @property
    def adaptable(self) -> dict[str, torch.nn.Module]:
        """Both, by the names of their folders."""
        return {"text_encoder": self._clip, "text_encoder_2": self._t5}

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Encode P prompts in one batch."""
        ids = self._padded(self._t5_tokenizer, prompts, self.length)
        whole = self._t5_tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        truncated = [len(tokens) > self.length for tokens in whole]
        sequence = self._t5(ids.to(self.device))[0]
        clip_ids = self._padded(
            self._clip_tokenizer, prompts, self._clip_tokenizer.model_max_length
        )
        pooled = self._clip(clip_ids.to(self.device)).pooler_output
        return EncodedText(sequence, pooled, truncated)

    def networks(self) -> tuple[Network, ...]:
        """CLIP, and T5 by its blocks."""
        blocks = tuple(self._t5.encoder.block)
        return Network(self._clip, (self._clip,)), Network(self._t5, blocks, is_chain=True)

    @staticmethod
    def _padded(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        ids: Tensor = tokenizer(list(prompts), **options, return_tensors="pt")["input_ids"]
        return ids
