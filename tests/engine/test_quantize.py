"""A model written in fewer bits opens as it was, and is written whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fluxline.engine.build import open_model
from fluxline.engine.quantize import quantize
from fluxline.errors import ConfigError, LoadError
from fluxline.linear.quantized import OWN_KINDS
from fluxline.weights.write import Writer
from tests.models.flux1.bfl_export import save_as_bfl
from tests.models.flux1.oracle import Inputs, evaluate_ours


def velocity(model):
    return evaluate_ours(model.transformer, Inputs.random(model.transformer.config, [(8, 8)]))


def text(model):
    return model.text.encode(["a red fox"]).sequence


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_it_opens_as_if_it_were_quantized_now(dev_folder, tmp_path, kind):
    quantize(str(dev_folder), kind, tmp_path / "out", device="cpu")

    found = open_model(str(tmp_path / "out"), "cpu")

    wanted = open_model(str(dev_folder), "cpu", kind)
    assert found.spec.precision == kind
    assert found.spec.notes == wanted.spec.notes
    assert torch.equal(velocity(found), velocity(wanted))
    with torch.inference_mode():
        assert torch.equal(text(found), text(wanted))
    assert found.weights != wanted.weights  # other files


def test_it_may_be_asked_for_by_the_kind_it_has_or_computed_in_full(dev_folder, tmp_path):
    quantize(str(dev_folder), "nf4", tmp_path / "out", device="cpu")
    out = str(tmp_path / "out")

    assert open_model(out, "cpu", "nf4").spec.precision == "nf4"
    full = open_model(out, "cpu", "fp32")
    assert full.spec.precision == ""
    torch.testing.assert_close(
        velocity(full), velocity(open_model(out, "cpu")), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ConfigError, match="transformer is quantized already, as nf4"):
        open_model(out, "cpu", "int8")


def test_a_single_file_becomes_a_folder(schnell_folder, tmp_path):
    bfl = save_as_bfl(schnell_folder, tmp_path / "bfl")

    quantize(str(bfl), "int8", tmp_path / "out", device="cpu")

    assert open_model(str(tmp_path / "out"), "cpu").spec.precision == "int8"


def test_it_is_smaller_and_says_so(dev_folder, tmp_path):
    seen = []
    count = quantize(
        str(dev_folder),
        "nf4",
        tmp_path / "out",
        device="cpu",
        tell=lambda part, done, total: seen.append((part, done / total)),
    )

    [file] = (tmp_path / "out" / "transformer").glob("*.safetensors")
    before = (dev_folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert file.stat().st_size < before
    [t5] = (tmp_path / "out" / "text_encoder_2").glob("*.safetensors")
    assert count == pytest.approx(file.stat().st_size + t5.stat().st_size, rel=0.05)
    assert [part for part, share in seen if share == 1] == ["transformer", "text_encoder_2"]
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "fluxline", "kind": "nf4"}


def test_what_is_not_quantized_is_the_same(dev_folder, tmp_path):
    quantize(str(dev_folder), "nf4", tmp_path / "out", device="cpu")

    name = "diffusion_pytorch_model.safetensors"
    before = load_file(dev_folder / "transformer" / name)
    after = load_file(tmp_path / "out" / "transformer" / name)
    kept = before.keys() & after.keys()
    assert "x_embedder.weight" in kept
    assert "transformer_blocks.0.norm1.linear.weight" in kept
    assert all(torch.equal(before[key], after[key]) for key in kept)
    for part in ("vae", "text_encoder", "tokenizer", "tokenizer_2", "scheduler"):
        for file in (dev_folder / part).iterdir():
            assert (tmp_path / "out" / part / file.name).read_bytes() == file.read_bytes()


def test_there_is_no_folder_until_it_is_whole(dev_folder, tmp_path):
    def interrupt(part, done, total):
        if part == "text_encoder_2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(str(dev_folder), "int8", tmp_path / "out", device="cpu", tell=interrupt)

    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(dev_folder, tmp_path):
    with pytest.raises(ConfigError, match="must not exist"):
        quantize(str(dev_folder), "int8", tmp_path, device="cpu")


def test_only_kinds_can_be_written_and_only_once(dev_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"one of int8.*got 'bf16'"):
        quantize(str(dev_folder), "bf16", tmp_path / "out", device="cpu")
    quantize(str(dev_folder), "int8", tmp_path / "out", device="cpu")
    with pytest.raises(ConfigError, match="quantized already, as int8"):
        quantize(str(tmp_path / "out"), "nf4", tmp_path / "again", device="cpu")


def test_a_folder_that_cannot_be_written_is_told(dev_folder):
    with pytest.raises(LoadError, match="out cannot be written"):
        quantize(str(dev_folder), "int8", Path("/proc/nowhere/out"), device="cpu")


def test_a_large_checkpoint_becomes_several_files(tmp_path):
    writer = Writer(tmp_path, "model", shard_bytes=100)
    for i in range(5):
        writer.add(f"t{i}", torch.full((16,), float(i)))
    files = writer.close()

    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in files] == names
    found = {name: float(value[0]) for file in files for name, value in load_file(file).items()}
    assert found == {f"t{i}": float(i) for i in range(5)}
