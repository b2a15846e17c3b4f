"""Wherever weights lie, the pictures are the same."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.placement import place
from fluxline.engine.scheduler import Budget
from fluxline.engine.tune import tune
from fluxline.errors import ConfigError
from fluxline.linear.distant import Distant

BUDGET = Budget(batch_tokens=1024, resident_tokens=8192)
CPU = torch.device("cpu")


def pixels(model, **asked):
    with Engine(model, budget=BUDGET) as engine:
        (image,) = engine.generate("a red fox", seed=5, steps=2, width=64, height=64, **asked)
    return np.asarray(Image.open(io.BytesIO(image.data)))


@pytest.mark.proves("stream", "flux1")
@pytest.mark.parametrize("memory", ["offload", "stream"])
@pytest.mark.parametrize("budget_bytes", [1, 300_000, 10**9])
def test_weights_that_visit_draw_the_same_picture(schnell, schnell_folder, memory, budget_bytes):
    expected = pixels(schnell)
    model = open_model(str(schnell_folder), "cpu")
    place(model, memory, [CPU], budget_bytes=budget_bytes)
    assert isinstance(model.transformer.modulation, Distant)
    assert np.array_equal(pixels(model), expected)


def test_weights_over_two_devices_draw_the_same_picture(schnell, schnell_folder):
    model = open_model(str(schnell_folder), "cpu")
    place(model, "spread", [CPU, CPU])
    assert np.array_equal(pixels(model), pixels(schnell))


@pytest.mark.gpu
def test_what_does_not_visit_lies_on_the_card_and_what_does_at_home(schnell_folder):
    model = open_model(str(schnell_folder), "cpu")
    place(model, "stream", [torch.device("cuda")], budget_bytes=10**9)
    here = model.transformer
    assert here.image_in.weight.is_cuda
    assert here.image_out.weight.is_cuda
    assert not here.modulation.base.weight.is_cuda
    assert not here.double_blocks[0].image.to_qkv.weight.is_cuda
    assert not model.vae.decoder.conv_in.weight.is_cuda


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["offload", "stream"])
def test_on_a_card_weights_that_visit_draw_the_same_picture(dev_folder, memory):
    expected = pixels(open_model(str(dev_folder), "cuda"))
    model = open_model(str(dev_folder), "cpu")
    place(model, memory, [torch.device("cuda")], budget_bytes=10**6)
    assert np.abs(pixels(model).astype(int) - expected).max() <= 2


@pytest.mark.gpu
def test_on_a_card_what_drawing_takes_is_told_without_the_weights_that_come(dev_folder):
    resident = tune(open_model(str(dev_folder), "cuda")).footprint
    model = open_model(str(dev_folder), "cpu")
    place(model, "stream", [torch.device("cuda")], budget_bytes=2 * 10**6)
    assert tune(model).footprint.token_bytes == pytest.approx(resident.token_bytes, rel=0.3)


@pytest.mark.parametrize("memory", ["offload", "stream", "spread"])
def test_without_a_card_weights_have_nowhere_to_visit(memory):
    with pytest.raises(ConfigError, match=f"memory {memory} is for cards: on cpu use auto"):
        Engine("mini", device="cpu", memory=memory)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory": "disk"}, "memory must be one of auto, resident, .*; got 'disk'"),
        ({"weights_gb": 1.0}, "weights_gb is of weights that visit a card; none would"),
        ({"memory": "resident", "weights_gb": 1.0}, "none would"),
    ],
)
def test_what_would_have_no_effect_is_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        Engine("mini", device="cpu", **asked)
