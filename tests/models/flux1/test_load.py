"""Opening model folders: what is missing or wrong is said in one clear error."""

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxline.engine.build import fast_dtype, open_model, pick_device
from fluxline.errors import CheckpointMismatch, ConfigError, LoadError
from fluxline.models.base import DynamicShift


@pytest.fixture
def folder(schnell_folder, tmp_path):
    return shutil.copytree(schnell_folder, tmp_path / "model")


def test_a_model_says_what_it_was_made_for(schnell, dev):
    assert schnell.spec.guidance is None
    assert schnell.spec.native_size == (64, 64)
    assert schnell.spec.text_length == 12
    assert dev.spec.guidance == 3.5
    assert isinstance(dev.spec.shift, DynamicShift)


def test_a_folder_without_a_part_is_refused_by_its_name(folder):
    shutil.rmtree(folder / "text_encoder_2")

    with pytest.raises(LoadError, match="text_encoder_2/"):
        open_model(str(folder), "cpu")


def test_a_missing_tensor_is_named(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["transformer_blocks.0.attn.to_k.weight"]
    save_file(tensors, file)

    with pytest.raises(CheckpointMismatch, match=r"double_blocks\.0\.image\.to_qkv\.weight"):
        open_model(str(folder), "cpu")


def test_a_config_without_a_number_is_refused_by_its_name(folder):
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["num_layers"]
    path.write_text(json.dumps(config))

    with pytest.raises(ConfigError, match="num_layers"):
        open_model(str(folder), "cpu")


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_a_part_that_cannot_be_read_is_named(folder, part):
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])

    with pytest.raises(LoadError, match=f"{part}/ cannot be read"):
        open_model(str(folder), "cpu")


def test_code_beside_the_weights_is_never_run(folder, monkeypatch):
    canary = folder / "canary"
    evil = f"open({str(canary)!r}, 'w').close()\nclass Evil: ...\n"
    wish = {
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "evil.Evil")
        | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        "trust_remote_code": True,
        "tokenizer_class": "Evil",
        "_attn_implementation_internal": "evil/evil",
    }
    for path in (folder, *(part for part in folder.iterdir() if part.is_dir())):
        (path / "evil.py").write_text(evil)
    for path in folder.glob("*/*config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | wish))
    index = {"_class_name": ["evil", "Evil"], "vae": ["evil", "Evil"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.chdir(folder)

    with contextlib.suppress(LoadError):
        open_model(str(folder), "cpu")

    assert not canary.exists()


def test_a_config_that_is_not_json_is_refused(folder):
    (folder / "transformer" / "config.json").write_text("{")

    with pytest.raises(ConfigError, match=r"transformer/config\.json"):
        open_model(str(folder), "cpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="device must be one of"):
        pick_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent_is_an_error_not_a_fallback():
    with pytest.raises(ConfigError, match="not available"):
        pick_device("cuda")


def test_a_devices_number_picks_a_card_where_there_are_cards():
    assert pick_device("cpu:1") == torch.device("cpu")
    with pytest.raises(ConfigError, match="must be like cuda:1"):
        pick_device("auto:first")


def test_a_card_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="there are 2 cards"):
        pick_device("cuda:2")


def test_the_dtype_is_what_is_fast_on_the_device():
    assert fast_dtype(torch.device("cpu")) is torch.float32
    assert fast_dtype(torch.device("mps")) is torch.bfloat16
