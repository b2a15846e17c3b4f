"""Other families with weights that visit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.placement import place
from fluxline.engine.scheduler import Budget
from tests.models.adapted.oracle import ORACLES
from tests.random_families import SAVERS

BUDGET = Budget(batch_tokens=1024, resident_tokens=8192)


def pixels(model):
    width, height = model.spec.native_size
    with Engine(model, budget=BUDGET) as engine:
        (image,) = engine.generate("a fox", seed=5, steps=2, width=width, height=height)
    return np.asarray(Image.open(io.BytesIO(image.data)))


@pytest.mark.proves("stream", "{name}")
@pytest.mark.parametrize("name", sorted(ORACLES))
def test_weights_that_visit_draw_the_same_picture(name, tmp_path):
    folder = str(SAVERS[name](tmp_path / name))
    expected = pixels(open_model(folder, "cpu"))
    model = open_model(folder, "cpu")
    place(model, "stream", [torch.device("cpu")], budget_bytes=20_000)
    assert np.array_equal(pixels(model), expected)
