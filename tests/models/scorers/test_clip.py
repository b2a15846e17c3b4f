"""The scorer against transformers' own CLIP, and what it says of folders that are none."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip import CLIPImageProcessorPil

from fluxline.errors import LoadError
from fluxline.models.scorers import ClipScorer

CPU = torch.device("cpu")
PROMPTS = ["a fox", "two very long cats that no twelve tokens hold", ""]


@pytest.fixture(scope="module")
def scorer(clip_folder):
    return ClipScorer.open(clip_folder, CPU)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 64, 3), dtype=np.uint8)


def test_a_score_is_the_cosine_that_transformers_finds(clip_folder, scorer, pictures):
    model = CLIPModel.from_pretrained(clip_folder).eval()
    words = CLIPTokenizer.from_pretrained(clip_folder)
    eye = CLIPImageProcessorPil.from_pretrained(clip_folder)
    for prompt, picture, score in zip(
        PROMPTS, pictures, scorer.score(pictures, PROMPTS), strict=True
    ):
        ids = words([prompt], truncation=True, max_length=12, return_tensors="pt")
        shown = eye(images=[Image.fromarray(picture)], return_tensors="pt")
        with torch.no_grad():
            answer = model(**ids, **shown)
        cosine = answer.logits_per_image.item() / model.logit_scale.exp().item()
        assert score == pytest.approx(cosine, abs=1e-5)


def test_pictures_are_scored_alike_alone_and_together(scorer, pictures):
    together = scorer.score(pictures, PROMPTS)
    alone = [scorer.score(pictures[k : k + 1], PROMPTS[k : k + 1])[0] for k in range(3)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_pickled_clip_is_not_read(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()

    with pytest.raises(LoadError, match="clip"):
        ClipScorer.open(folder, CPU)


def test_a_folder_that_is_no_clip_is_refused_by_name(tmp_path):
    with pytest.raises(LoadError, match=tmp_path.name):
        ClipScorer.open(tmp_path, CPU)
