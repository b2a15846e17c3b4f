"""The text encoder of FLUX.2: a language model, read in the middle.

The prompt is put to it as a chat, padded to a fixed length; what three of its layers think of each
word, side by side, is the text. Layers above the last of the three are never run, so they are not
read. klein asks Qwen3, dev asks Mistral with a message of its own before the prompt.
Source: black-forest-labs/flux2, text_encoder.py and system_messages.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fluxline.errors import LoadError
from fluxline.models.base import Network

PICTURE = "[IMG]"  # Mistral's sign for a picture, of which there is none in a prompt
SYSTEM_MESSAGE = (  # word for word what dev was trained with
    "You are an AI that reasons about image descriptions. You give structured responses focusing "
    "on object relationships, object\nattribution and actions without speculation."
)


@dataclass(frozen=True, slots=True)
class Chat:
    """How a prompt is put to a language model. layers: whose thoughts are read, counted from 1."""

    layers: tuple[int, ...]
    system: str | None = None
    answer: dict[str, Any] | None = None  # what the template adds, for an answer to begin


KLEIN = Chat(layers=(9, 18, 27), answer={"add_generation_prompt": True, "enable_thinking": False})
DEV = Chat(layers=(10, 20, 30), system=SYSTEM_MESSAGE)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """features: (P, L, text_dim). truncated: P truths."""

    features: Tensor
    truncated: list[bool]


def cut(model: Any, chat: Chat) -> Any:
    """A language model without the layers above those that are read. Raises LoadError if it has
    too few.
    """
    if (there := len(model.layers)) < (last := max(chat.layers)):
        raise LoadError(f"text_encoder/ has {there} layers; {last} are read")
    model.layers = model.layers[:last]
    model.norm = nn.Identity()  # of the last layer of all; what is read stands before it
    return model


class TextEncoder:
    """A language model without its head, and its tokenizer. Thread: the engine's.

    length: tokens of the text, the chat's own words among them. model: one that was `cut`.
    """

    def __init__(self, model: Any, tokenizer: Any, *, chat: Chat, length: int) -> None:
        # Any: transformers' models and tokenizers share no useful type
        self.length = length
        self._chat = chat
        self._tokenizer = tokenizer
        self._model = model

    def network(self) -> Network:
        """The language model, by its layers; what it looks words up in lies where it computes."""
        return Network(self._model, tuple(self._model.layers))

    @property
    def width(self) -> int:
        """Of the features of a word."""
        hidden: int = self._model.config.hidden_size
        return len(self._chat.layers) * hidden

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Encode P prompts in one batch."""
        texts = [self.said(prompt) for prompt in prompts]
        device = self._model.embed_tokens.weight.device
        options = {"padding": "max_length", "max_length": self.length, "truncation": True}
        tokens = self._tokenizer(
            texts, add_special_tokens=False, return_tensors="pt", **options
        ).to(device)
        hidden = self._model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        features = torch.cat([hidden[layer] for layer in self._chat.layers], dim=-1)
        whole = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return EncodedText(features, [len(ids) > self.length for ids in whole])

    def said(self, prompt: str) -> str:
        """The whole of what the language model reads."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if self._chat.system is not None:
            said = (("system", self._chat.system), ("user", prompt.replace(PICTURE, "")))
            messages = [
                {"role": role, "content": [{"type": "text", "text": text}]} for role, text in said
            ]
        template = self._chat.answer or {}
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **template)
        return text
