"""GGUF files as they are about: opened beside a diffusers folder, kept in their blocks."""

import shutil

import pytest
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from safetensors.torch import save_file

from fluxline.engine import Engine
from fluxline.engine.build import checkpoint_at, open_model
from fluxline.engine.scheduler import Budget
from fluxline.errors import CheckpointMismatch, ConfigError, LoadError
from fluxline.images import read_recipe
from fluxline.linear.gguf import GGUF_KINDS
from fluxline.linear.quantized import QuantizedLinear
from tests.models.flux1.gguf_export import save_as_gguf
from tests.models.flux1.oracle import Inputs, evaluate_ours
from tests.models.nearness import relative_l2

ALONE = Budget(batch_tokens=1, resident_tokens=1)


@pytest.fixture
def folder(dev_folder, tmp_path):
    """A model without its transformer, for a file to lie in. 256 columns: K blocks fit."""
    return shutil.copytree(dev_folder, tmp_path / "model", ignore=lambda _, __: ["transformer"])


def velocity(model):
    return evaluate_ours(model.transformer, Inputs.random(model.transformer.config, [(8, 8)]))


def quantized_in(model):
    modules = model.transformer.named_modules()
    return {name: m.kind.name for name, m in modules if isinstance(m, QuantizedLinear)}


@pytest.mark.parametrize("kind", GGUF_KINDS)
@pytest.mark.filterwarnings("ignore")  # diffusers reads the file as a map that cannot be written
def test_a_file_computes_what_diffusers_reads_in_it(dev_folder, folder, kind):
    file = save_as_gguf(dev_folder, folder / "flux1-test.gguf", lambda name: kind)
    read = {
        name: dequantize_gguf_tensor(tensor).float() if hasattr(tensor, "quant_type") else tensor
        for name, tensor in load_gguf_checkpoint(str(file)).items()
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in read.items()}, folder / "dense.safetensors"
    )

    ours = open_model(str(file), "cpu")

    dense = open_model(str(folder / "dense.safetensors"), "cpu")
    assert ours.spec.precision == kind
    assert not quantized_in(dense)
    assert len(quantized_in(ours)) == 12
    assert relative_l2(velocity(ours), velocity(dense)) < 2e-3  # theirs go through float16


def test_a_mixture_is_named_by_what_there_is_most_of(dev_folder, folder):
    file = save_as_gguf(
        dev_folder,
        folder / "flux1-test.gguf",
        lambda name: "Q6_K" if "img_attn.qkv" in name else "Q4_K",
    )
    model = open_model(str(file), "cpu")

    assert model.spec.precision == "Q4_K+Q6_K"
    assert quantized_in(model)["double_blocks.0.image.to_qkv"] == "Q6_K"
    assert model.spec.notes == ("text_encoder_2 is not quantized",)
    assert not isinstance(model.transformer.modulation, QuantizedLinear)


def test_a_folder_with_one_opens_and_draws(dev_folder, folder):
    save_as_gguf(dev_folder, folder / "flux1-test.gguf", lambda name: "Q8_0")

    with Engine(str(folder), device="cpu", budget=ALONE) as engine:
        (image,) = engine.generate("a fox", seed=3, steps=1)

    assert read_recipe(image.data).receipt.precision == "Q8_0"


def test_it_can_be_computed_in_full(dev_folder, folder):
    file = save_as_gguf(dev_folder, folder / "flux1-test.gguf", lambda name: "Q5_K")

    held, full = open_model(str(file), "cpu"), open_model(str(file), "cpu", "fp32")

    assert not quantized_in(full)
    assert relative_l2(velocity(full), velocity(held)) < 1e-5
    with pytest.raises(ConfigError, match=r"quantized already, as Q5_K.*auto, bf16 or fp32"):
        open_model(str(file), "cpu", "nf4")


def test_other_weights_have_another_fingerprint(dev_folder, folder):
    files = [
        save_as_gguf(dev_folder, folder / f"{kind}.gguf", lambda name, kind=kind: kind)
        for kind in ("Q8_0", "Q4_0")
    ]
    copy = shutil.copy(files[0], folder / "copy.gguf")

    first, second, same = (checkpoint_at(folder / file).fingerprint() for file in (*files, copy))
    assert first == same
    assert first != second
    assert len(first) == 32


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"\x00" * 64, b"GGUF\x03\x00\x00\x00" + b"\xff" * 64]
)
def test_a_file_that_is_none_is_a_clear_error(folder, content):
    (folder / "bad.gguf").write_bytes(content)

    with pytest.raises(LoadError, match=r"bad\.gguf"):
        open_model(str(folder / "bad.gguf"), "cpu")


def test_a_file_that_was_cut_is_a_clear_error(dev_folder, folder):
    file = save_as_gguf(dev_folder, folder / "cut.gguf", lambda name: "Q8_0")
    file.write_bytes(file.read_bytes()[:-1000])

    with pytest.raises(LoadError, match=r"cannot read cut\.gguf"):
        open_model(str(file), "cpu")


def test_another_models_file_is_refused_by_its_tensors(folder):
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(folder / "other.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises((CheckpointMismatch, ConfigError)):
        open_model(str(folder / "other.gguf"), "cpu")
