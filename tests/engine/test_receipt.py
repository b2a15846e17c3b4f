"""A receipt says what a picture was really made with, and tells weights that differ apart."""

from dataclasses import replace

import pytest
import torch

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.images import read_recipe
from tests.models.flux1.oracle import small_config
from tests.random_flux import save_random_flux

ALONE = Budget(batch_tokens=1, resident_tokens=1)
TOGETHER = Budget(batch_tokens=2000, resident_tokens=8000)


def test_a_picture_is_drawn_with_what_its_receipt_foretold(schnell):
    request = new_request("a fox", seed=3, params={"steps": 2})
    with Engine(schnell, budget=ALONE, threads=1) as engine:
        [foretold] = engine.receipts(request)
        [image] = engine.submit(request).result()

    recipe = read_recipe(image.data)
    assert recipe.receipt == foretold
    assert (foretold.dtype, foretold.threads, foretold.beside) == ("float32", 1, 0)
    assert foretold.device.startswith("cpu ")
    assert foretold.torch == torch.__version__
    assert len(foretold.sigmas) == 3
    assert foretold.sigmas[-1] == 0


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "avif"])
def test_what_a_receipt_holds_makes_the_same_bytes_again(schnell, format):
    asked = new_request("a fox", seed=3, params={"steps": 2, "sampler": "heun", "cfg_scale": 2.0})
    asked = replace(asked, output_format=format, compression=70)
    with Engine(schnell, budget=ALONE, threads=2) as engine:
        [image] = engine.submit(asked).result()
    recipe = read_recipe(image.data)
    again = replace(recipe.to_request("again"), output_format=format)
    with Engine(schnell, budget=ALONE, threads=recipe.receipt.threads) as engine:
        assert engine.submit(again).result()[0].data == image.data


def test_who_shared_a_batch_is_told_so(schnell):
    with Engine(schnell, budget=TOGETHER) as engine:
        images = engine.generate("a fox", n=3, seed=3, steps=2)

    assert {read_recipe(image.data).receipt.beside for image in images} == {2}


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "text_encoder_2", "vae"])
def test_every_part_that_was_learned_counts(tmp_path, part):
    folder = save_random_flux(tmp_path, small_config(head_dim=32, heads=2, double=1, single=1))
    before = open_model(str(folder), "cpu").weights
    [file] = (folder / part).glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1  # the lowest bit of the first value
    file.write_bytes(data)

    assert open_model(str(folder), "cpu").weights != before
