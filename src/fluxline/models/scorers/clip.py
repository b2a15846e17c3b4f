"""A prompt-image scorer: the cosine between what CLIP sees and what CLIP reads.

Any CLIP in transformers' layout will do: the small one that is shipped, OpenAI's, PickScore.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision"; Hessel et al. 2021, "CLIPScore".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip import CLIPImageProcessorPil

from fluxline.errors import LoadError
from fluxline.request import ScorerName


class ClipScorer:
    """Scores pictures against prompts. Thread: the engine's."""

    name: ScorerName = "clip"

    def __init__(self, *, model: CLIPModel, words: Any, eye: Any) -> None:
        self._model, self._words, self._eye = model, words, eye

    @classmethod
    def open(cls, folder: Path, device: torch.device) -> Self:
        """Open a CLIP folder in float32: it is small beside what it judges. Raises LoadError."""
        try:
            model = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            eye = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as exc:
            kind = type(exc).__name__
            raise LoadError(f"{folder.name} is not a CLIP that can be read ({kind})") from exc
        return cls(model=model.eval().to(device), words=words, eye=eye)

    @torch.inference_mode()
    def score(self, pictures: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> list[float]:
        """Cosine, -1 to 1, of each picture (height, width, 3) with its own prompt."""
        model = self._model
        ids = self._words(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        shown = self._eye(list(pictures), input_data_format="channels_last", return_tensors="pt")
        read = model.text_model(ids["input_ids"].to(model.device)).pooler_output
        seen = model.vision_model(shown["pixel_values"].to(model.device)).pooler_output
        scores: list[float] = F.cosine_similarity(
            model.visual_projection(seen), model.text_projection(read)
        ).tolist()
        return scores
