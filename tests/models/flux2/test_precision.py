"""A FLUX.2 held in fewer bits: which layers, in which files, and how little that changes."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.quantize import quantize
from fluxline.engine.scheduler import Budget
from fluxline.errors import CheckpointMismatch, ConfigError
from fluxline.images import read_recipe
from fluxline.linear.gguf import GGUF_KINDS
from fluxline.linear.quantized import OWN_KINDS, QuantizedLinear
from tests.models.flux1.gguf_export import save_as_gguf
from tests.models.flux2.bfl_export import bfl_names, save_as_bfl
from tests.models.flux2.oracle import Inputs, evaluate_ours
from tests.models.nearness import relative_l2

ALONE = Budget(batch_tokens=1, resident_tokens=1)
# Relative error of a velocity of random weights, about one and a half times what was measured of
# dev. They are louder than FLUX.1's in its tests: attention that chooses chooses otherwise.
VELOCITY = {
    "int8": 0.02,
    "int8-dynamic": 0.045,
    "fp8": 0.13,
    "nf4": 0.45,
    "nf4-double": 0.45,
    "hqq4": 0.3,
    "fp4": 0.35,
}
DIFFUSERS = "diffusion_pytorch_model.safetensors"


def quantized_in(module):
    return {n: m.kind.name for n, m in module.named_modules() if isinstance(m, QuantizedLinear)}


def velocity(model):
    inputs = Inputs.random(model.transformer.config, [(4, 4)], references=((3, 5),))
    cast = {name: getattr(inputs, name).to(model.dtype) for name in ("x", "text", "references")}
    return evaluate_ours(model.transformer, replace(inputs, **cast)).float()


def thoughts(model):
    """What the text encoder makes of a prompt."""
    with torch.inference_mode():
        return model.text.encode(["a red fox"]).features


def held_bytes(module):
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.proves("text to image", "flux2", "{kind}")
@pytest.mark.parametrize("name", ["klein", "dev"])
@pytest.mark.parametrize("kind", OWN_KINDS)
def test_a_velocity_is_nearly_that_of_the_full_weights(models, folders, name, kind):
    held, full = open_model(str(folders[name]), "cpu", kind), models[name]

    assert 0 < relative_l2(velocity(held), velocity(full)) < VELOCITY[kind]
    assert held.spec.precision == kind
    assert held_bytes(held.transformer) < 0.55 * held_bytes(full.transformer)
    assert held_bytes(held.text._model) < 0.55 * held_bytes(full.text._model)


def test_blocks_are_quantized_and_what_stands_around_them_is_not(folders):
    held = open_model(str(folders["dev"]), "cpu", "nf4")

    assert set(quantized_in(held.transformer)) == {
        *(
            f"double_blocks.0.{stream}.{layer}"
            for stream in ("image", "text")
            for layer in ("to_qkv", "to_out", "mlp_in", "mlp_out")
        ),
        *(f"single_blocks.{i}.{layer}" for i in range(2) for layer in ("proj_in", "proj_out")),
    }
    assert len(quantized_in(held.text._model)) == 30 * 7  # q, k, v, o, gate, up, down


@pytest.mark.parametrize("name", ["klein", "dev"])
def test_the_text_encoder_is_held_as_suits_it(models, folders, name):
    held = open_model(str(folders[name]), "cpu", "int8-dynamic")

    assert set(quantized_in(held.text._model).values()) == {"int8"}
    assert "text_encoder is held as int8" in held.spec.notes
    assert 0 < relative_l2(thoughts(held), thoughts(models[name])) < 0.1


@pytest.mark.parametrize(
    ("name", "kind"), [*(("klein", kind) for kind in OWN_KINDS), ("dev", "fp4")]
)
def test_what_is_written_opens_as_if_it_were_quantized_now(folders, tmp_path, name, kind):
    quantize(str(folders[name]), kind, tmp_path / "out", device="cpu")

    found = open_model(str(tmp_path / "out"), "cpu")

    wanted = open_model(str(folders[name]), "cpu", kind)
    assert (found.spec.precision, found.spec.notes) == (kind, wanted.spec.notes)
    assert torch.equal(velocity(found), velocity(wanted))
    assert torch.equal(thoughts(found), thoughts(wanted))


def test_what_nobody_reads_is_not_written(folders, tmp_path):
    quantize(str(folders["dev"]), "nf4", tmp_path / "out", device="cpu")

    written = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    layers = {name.split(".layers.")[1].split(".")[0] for name in written if ".layers." in name}
    assert layers == {str(i) for i in range(30)}
    assert not [name for name in written if name.startswith("vision_tower.")]
    kept = load_file(tmp_path / "out" / "transformer" / DIFFUSERS)
    before = load_file(folders["dev"] / "transformer" / DIFFUSERS)
    for name in ("x_embedder.weight", "single_stream_modulation.linear.weight"):
        assert torch.equal(kept[name], before[name])


def test_a_tensor_that_no_language_model_has_is_refused_by_its_name(folders, tmp_path):
    folder = shutil.copytree(folders["klein"], tmp_path / "model")
    file = folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(file), "model.adapter.weight": torch.ones(2, 2)}, file)

    with pytest.raises(CheckpointMismatch, match=r"model\.adapter\.weight"):
        open_model(str(folder), "cpu")


def test_it_is_quantized_once(folders, tmp_path):
    out = tmp_path / "out"
    quantize(str(folders["klein"]), "nf4", out, device="cpu")

    full = open_model(str(out), "cpu", "fp32")
    assert not quantized_in(full.transformer)
    assert relative_l2(velocity(full), velocity(open_model(str(out), "cpu"))) < 1e-4
    with pytest.raises(ConfigError, match="transformer is quantized already, as nf4"):
        open_model(str(out), "cpu", "int8")
    with pytest.raises(ConfigError, match="transformer is quantized already, as nf4"):
        quantize(str(out), "int8", tmp_path / "again", device="cpu")


def test_both_dialects_of_a_checkpoint_give_the_same(folders, tmp_path):
    bfl = save_as_bfl(folders["dev"], tmp_path / "bfl")
    for kind in ("int8", "nf4"):
        one, other = (open_model(str(path), "cpu", kind) for path in (folders["dev"], bfl))
        assert torch.equal(velocity(one), velocity(other))
    quantize(str(bfl), "nf4", tmp_path / "out", device="cpu")
    assert torch.equal(velocity(open_model(str(tmp_path / "out"), "cpu")), velocity(other))


def test_a_picture_and_its_receipt_name_the_kind(folders):
    for name in ("klein", "kv"):
        with Engine(str(folders[name]), device="cpu", precision="int8", budget=ALONE) as engine:
            (image,) = engine.generate("a fox", seed=3, steps=2)
        assert read_recipe(image.data).receipt.precision == "int8"


def test_float8_files_of_other_people_stay_float8(models, folders, tmp_path):
    folder = save_as_bfl(folders["klein"], tmp_path / "bfl")
    file = folder / "flux2-test.safetensors"
    tensors = load_file(file)
    for name in [n for n in tensors if "_blocks" in n and tensors[n].dim() == 2]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
        tensors[f"{name.removesuffix('weight')}input_scale"] = torch.ones(())
    save_file(tensors, file)

    held = open_model(str(folder), "cpu")

    assert held.spec.precision == "fp8"
    assert held.spec.notes[-1] == "text_encoder is not quantized"
    assert relative_l2(velocity(held), velocity(models["klein"])) < 0.05
    with pytest.raises(ConfigError, match="quantized already, as fp8"):
        open_model(str(folder), "cpu", "nf4")


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_a_gguf_file_computes_what_its_blocks_mean(folders, tmp_path, kind):
    """Dev's rows are 256 wide: K blocks fit. What blocks mean is held against gguf's own reading
    in tests/linear."""
    without = shutil.ignore_patterns("transformer")
    folder = shutil.copytree(folders["dev"], tmp_path / "model", ignore=without)
    file = save_as_gguf(
        folders["dev"], folder / f"flux2-dev-{kind}.gguf", lambda name: kind, bfl_names
    )

    held, full = open_model(str(folder), "cpu"), open_model(str(file), "cpu", "fp32")

    assert held.spec.precision == kind
    assert len(quantized_in(held.transformer)) == 12
    assert not quantized_in(full.transformer)
    assert relative_l2(velocity(held), velocity(full)) < 1e-5
