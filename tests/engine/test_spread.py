"""Models over several cards, that are not there: nothing of one card meets anything of another."""

import pytest
import torch
from diffusers import Flux2KleinKVPipeline

from fluxline.engine.build import open_model
from fluxline.engine.placement import place
from fluxline.models.base import Pictures
from tests.cards import Cards, card_of
from tests.models.flux2.oracle import small_config
from tests.random_families import SAVERS
from tests.random_flux2 import THOUGHTS, save_random_klein


def drawn(model, **pictures):
    """Velocity and picture of one evaluation with two rows."""
    generator = torch.Generator("cpu").manual_seed(3)
    conditionings = model.encode(["a red fox", "a dog"])
    x = torch.stack([model.noise(generator, 64, 64) for _ in range(2)])
    guide = model.guide(Pictures(**pictures))
    contexts = [
        model.context(it, width=64, height=64, guidance=3.0, sigmas=[0.7], guide=guide)
        for it in conditionings
    ]
    velocity = model.evaluate(x, [0.7, 0.7], contexts)
    clean = model.encode_picture(torch.full((64, 64, 3), 90, dtype=torch.uint8))
    return velocity, clean, model.decode(x, 64, 64)


def over(folder, count, **pictures):
    """The same, with the weights over so many cards; and the model."""
    model = open_model(str(folder), "cpu")
    with Cards():
        place(model, "spread", [torch.device("cuda", number) for number in range(count)])
        velocity, clean, picture = drawn(model, **pictures)
        assert card_of(velocity) == card_of(clean) == torch.device("cuda", 0)
    assert len({card_of(weight) for weight in weights_of(model)}) > 1
    return (velocity, clean, picture), model


def weights_of(model):
    units = [unit for network in model.networks() for unit in network.units]
    return [weight for unit in units for weight in unit.parameters()]


def assert_equal(parts, expected):
    for one, other in zip(parts, expected, strict=True):
        assert torch.equal(one, other)


SHOWN = (torch.full((64, 64, 3), 40, dtype=torch.uint8),)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_flux1_with_a_controlnet(controlnet, controlnet_folder, count):
    parts, _ = over(controlnet_folder, count, references=SHOWN)
    assert_equal(parts, drawn(controlnet, references=SHOWN))


@pytest.mark.parametrize("count", [2, 3, 120])
@pytest.mark.parametrize("kind", ["klein", "kv"])
def test_a_flux2_whose_text_encoder_lies_on_several_cards(tmp_path, kind, count):
    more = {"kind": Flux2KleinKVPipeline} if kind == "kv" else {}
    config = small_config(head_dim=64, double=2, single=3, text_dim=3 * THOUGHTS)
    folder = save_random_klein(tmp_path, config, **more)
    parts, model = over(folder, count, references=SHOWN)
    assert_equal(parts, drawn(open_model(str(folder), "cpu"), references=SHOWN))
    if count == 120:
        layers = model.networks()[0].units
        assert len({card_of(layer.mlp.up_proj.weight) for layer in layers}) >= 3


FAST = ("sd", "sd3")  # a UNet, whose middle is in no list of blocks, and a transformer
FAMILIES = [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in sorted(SAVERS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_family(tmp_path, family):
    folder = SAVERS[family](tmp_path)
    parts, _ = over(folder, 9)
    assert_equal(parts, drawn(open_model(str(folder), "cpu")))
