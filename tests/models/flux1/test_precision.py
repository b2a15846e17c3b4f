"""A FLUX.1 held in fewer bits: which layers, what it says of itself, what it costs."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd.profiler import profile

from fluxline.engine import Engine
from fluxline.engine.build import checkpoint_at, open_model
from fluxline.engine.precision import Precision
from fluxline.engine.scheduler import Budget
from fluxline.errors import ConfigError
from fluxline.images import read_recipe
from fluxline.linear.quantized import OWN_KINDS, QuantizedLinear
from fluxline.models.flux1.load import transformer_part
from fluxline.models.flux1.transformer import FluxTransformer
from tests.models.flux1.bfl_export import save_as_bfl
from tests.models.flux1.oracle import Inputs, diffusers_model, evaluate_ours, small_config
from tests.models.nearness import psnr, relative_l2

ALONE = Budget(batch_tokens=1, resident_tokens=1)
# Relative error of a velocity of random weights, about twice what was measured.
VELOCITY = {
    "int8": 0.02,
    "int8-dynamic": 0.03,
    "fp8": 0.05,
    "nf4": 0.2,
    "nf4-double": 0.2,
    "hqq4": 0.2,
    "fp4": 0.2,
}


def quantized_in(module):
    return {n: m.kind.name for n, m in module.named_modules() if isinstance(m, QuantizedLinear)}


def velocity(model):
    inputs = Inputs.random(model.transformer.config, [(8, 8)])
    cast = {name: getattr(inputs, name).to(model.dtype) for name in ("x", "text", "pooled")}
    return evaluate_ours(model.transformer, replace(inputs, **cast)).float()


@pytest.mark.proves("text to image", "flux1", "{kind}")
@pytest.mark.parametrize("kind", OWN_KINDS)
def test_a_velocity_is_nearly_that_of_the_full_weights(dev, dev_folder, kind):
    held = open_model(str(dev_folder), "cpu", kind)

    assert 0 < relative_l2(velocity(held), velocity(dev)) < VELOCITY[kind]
    assert held.spec.precision == kind


def test_blocks_are_quantized_and_what_stands_around_them_is_not(dev_folder):
    held = open_model(str(dev_folder), "cpu", "nf4")

    assert set(quantized_in(held.transformer)) == {
        *(
            f"double_blocks.0.{stream}.{layer}"
            for stream in ("image", "text")
            for layer in ("to_qkv", "to_out", "mlp_in", "mlp_out")
        ),
        *(f"single_blocks.{i}.{layer}" for i in range(2) for layer in ("proj_in", "proj_out")),
    }
    for layer in ("modulation", "image_in", "text_in", "image_out"):
        assert isinstance(held.transformer.get_submodule(layer), nn.Linear)
    t5 = held.text._t5
    assert len(quantized_in(t5)) == 7  # of its one block: q, k, v, o, wi_0, wi_1, wo
    assert not quantized_in(held.text._clip)


def test_the_text_encoder_is_held_as_suits_it(dev_folder):
    held = open_model(str(dev_folder), "cpu", "fp4")

    assert set(quantized_in(held.text._t5).values()) == {"hqq4"}
    assert "text_encoder_2 is held as hqq4" in held.spec.notes


def test_what_a_cpu_only_emulates_is_said(dev_folder):
    for kind in ("int8-dynamic", "fp8", "fp4"):
        notes = open_model(str(dev_folder), "cpu", kind).spec.notes
        assert any(f"transformer is held as {kind}, but multiplied in plain" in n for n in notes)
    assert open_model(str(dev_folder), "cpu", "nf4").spec.notes == ()


def test_dtypes_can_be_asked_for(schnell, schnell_folder):
    half = open_model(str(schnell_folder), "cpu", "bf16")

    assert (half.dtype, half.spec.info("cpu", "bfloat16").precision) == (torch.bfloat16, "bf16")
    assert schnell.spec.info("cpu", "float32").precision == "fp32"
    assert 0 < relative_l2(velocity(half), velocity(schnell)) < 0.02


def test_a_precision_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"precision must be one of auto.*nf4.*got 'int3'"):
        open_model("mini", "cpu", "int3")


def test_both_dialects_of_a_checkpoint_give_the_same(schnell_folder, tmp_path):
    bfl = save_as_bfl(schnell_folder, tmp_path / "bfl")
    about = (schnell_folder / "transformer" / "config.json").read_text()
    (bfl / "transformer").mkdir()
    (bfl / "transformer" / "config.json").write_text(about)

    for kind in ("int8", "nf4"):
        one, other = (open_model(str(path), "cpu", kind) for path in (schnell_folder, bfl))
        assert torch.equal(velocity(one), velocity(other))


def test_a_picture_and_its_receipt_name_the_kind(schnell_folder):
    with Engine(str(schnell_folder), device="cpu", precision="nf4", budget=ALONE) as engine:
        (image,) = engine.generate("a fox", seed=3, steps=2)
        [info] = engine.models

    receipt = read_recipe(image.data).receipt
    assert (info.precision, info.dtype, receipt.precision) == ("nf4", "float32", "nf4")
    full = replace(receipt, precision="fp32")
    assert receipt.differences(full) == ["precision nf4 then, fp32 now"]
    assert replace(receipt, precision="").differences(full) == []  # of before there were any


def test_batch_mates_do_not_change_a_picture(schnell_folder):
    budget = Budget(batch_tokens=2000, resident_tokens=8000)
    model = open_model(str(schnell_folder), "cpu", "int8-dynamic")
    with Engine(model, budget=ALONE) as alone, Engine(model, budget=budget) as together:
        [one] = alone.generate("a fox", seed=5, steps=2)
        many = together.generate("a fox", n=3, seed=4, steps=2)

    assert psnr(pixels_of(one), pixels_of(many[1])) > 60


def pixels_of(image):
    return np.asarray(Image.open(io.BytesIO(image.data)))


def test_float8_files_of_other_people_stay_float8(schnell_folder, tmp_path):
    folder = save_as_bfl(schnell_folder, tmp_path / "bfl")
    file = folder / "flux1-test.safetensors"
    tensors = load_file(file)
    for name in [n for n in tensors if "_blocks" in n and tensors[n].dim() == 2]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[name.removesuffix("weight") + "scale_weight"] = scale
    save_file(tensors, file)

    held = open_model(str(folder), "cpu")

    assert held.spec.precision == "fp8"
    full = open_model(str(schnell_folder), "cpu")
    assert relative_l2(velocity(held), velocity(full)) < 0.05
    as_computed = open_model(str(folder), "cpu", "fp32")
    assert not quantized_in(as_computed.transformer)
    assert relative_l2(velocity(as_computed), velocity(held)) < 1e-5
    with pytest.raises(ConfigError, match="quantized already, as fp8"):
        open_model(str(folder), "cpu", "nf4")


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    """A transformer of which one tensor is a small part."""
    config = small_config(head_dim=64, heads=6, double=2, single=8)
    folder = tmp_path_factory.mktemp("big")
    diffusers_model(config).save_pretrained(folder / "transformer")
    return folder


def peak_bytes(act, mapped):
    """The most that torch's allocator has given out at once, beyond what it had before.

    mapped: bytes of a file whose pages torch counts as well, though they are the system's.
    """
    with profile(profile_memory=True, use_kineto=True) as seen:
        kept = act()
    events = [e for e in seen.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes() if abs(event.nbytes()) != mapped else 0
        peak = max(peak, now)
    return peak, kept


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_loading_holds_one_full_tensor_at_a_time(big_folder, kind):
    def opened(precision):
        config, part = transformer_part(big_folder, checkpoint_at)
        with torch.device("meta"):
            model = FluxTransformer(config)
        Precision(precision).place(model, part, torch.device("cpu"))
        model.to_empty(device="cpu")
        part.checkpoint.fill(model, part.layout)
        return model

    [file] = (big_folder / "transformer").glob("*.safetensors")
    peak, model = peak_bytes(lambda: opened(kind), file.stat().st_size)

    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    config = model.config
    largest = 4 * 5 * config.hidden * config.hidden  # bytes of the widest tensor: proj_out
    full = sum(4 * m.in_features * m.out_features for m in model.modules()
               if isinstance(m, QuantizedLinear))  # fmt: skip
    temporaries = 4  # copies of one tensor while it is being quantized
    assert peak < held + temporaries * largest
    assert peak < 0.75 * (held + full), "the bound says nothing"
