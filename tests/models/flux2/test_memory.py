"""FLUX.2 with weights that visit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.placement import place
from fluxline.engine.scheduler import Budget
from fluxline.images import encode
from tests.images.pictures import photo

BUDGET = Budget(batch_tokens=1024, resident_tokens=8192)


def pixels(model):
    with Engine(model, budget=BUDGET) as engine:
        (image,) = engine.generate(
            "a fox", seed=5, steps=2, width=64, height=64, image=encode(photo(64), format="png")
        )
    return np.asarray(Image.open(io.BytesIO(image.data)))


@pytest.mark.proves("stream", "flux2")
@pytest.mark.parametrize("memory", ["offload", "stream"])
@pytest.mark.parametrize("name", ["klein", "dev"])
def test_weights_that_visit_draw_the_same_picture(models, folders, name, memory):
    model = open_model(str(folders[name]), "cpu")
    place(model, memory, [torch.device("cpu")], budget_bytes=200_000)
    assert np.array_equal(pixels(model), pixels(models[name]))
