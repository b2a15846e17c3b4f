"""Opening model folders: what is missing or wrong is said in one clear error."""

import contextlib
import json
import shutil

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from safetensors.torch import load_file, save_file

from fluxline.engine.build import fast_dtype, open_model, pick_device
from fluxline.errors import CheckpointMismatch, ConfigError, LoadError
from fluxline.models.flux1.variants import VARIANTS
from fluxline.models.registry import MODELS, Entry
from fluxline.models.spec import DynamicShift
from tests.models.flux1.bfl_export import save_as_bfl
from tests.models.flux1.oracle import small_config
from tests.models.test_base import spec
from tests.random_flux import save_random_flux, save_random_redux


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


@pytest.mark.parametrize(
    ("model", "guidance", "steps", "takes"),
    [
        ("dev", 3.5, 28, (0, False, False)),
        ("kontext", 2.5, 30, (1, False, False)),
        ("fill", 30.0, 50, (0, True, True)),
        ("depth", 10.0, 50, (1, False, True)),
        ("canny", 30.0, 50, (1, False, True)),
        ("control", 3.5, 28, (1, False, True)),
        ("redux", 2.5, 50, (4, False, False)),
        ("controlnet", 3.5, 28, (1, False, True)),
    ],
)
def test_a_variant_is_known_by_its_channels_and_what_it_is_called(
    request, tmp_path, model, guidance, steps, takes
):
    alike = {"canny": "depth", "control": "depth"}.get(model, model)
    folder = shutil.copytree(request.getfixturevalue(f"{alike}_folder"), tmp_path / model)
    about = json.loads((folder / "fluxline.json").read_text())
    del about["default_steps"]
    (folder / "fluxline.json").write_text(json.dumps(about))

    info = open_model(str(folder), "cpu").spec.info("cpu", "float32")

    assert (info.guidance, info.default_steps) == (guidance, steps)
    assert (info.references, info.fills, info.needs_picture) == takes


def test_a_kontext_is_known_by_its_single_file(dev_folder, tmp_path):
    folder = save_as_bfl(dev_folder, tmp_path / "model")
    (folder / "flux1-test.safetensors").rename(folder / "flux1-kontext-dev.safetensors")

    assert open_model(str(folder), "cpu").spec.references == VARIANTS["kontext"].references


def test_kontext_looks_at_the_sizes_it_was_trained_for():
    kontext = spec(references=VARIANTS["kontext"].references)
    for width in range(100, 2000, 130):
        for height in range(100, 2000, 170):
            aspect = width / height
            expected = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
            assert kontext.reference_size((width, height), (64, 64)) == expected[1:]


def test_a_redux_may_lie_elsewhere(monkeypatch, dev_folder, redux_folder):
    entry = Entry("flux1", str(dev_folder), beside=str(redux_folder))
    monkeypatch.setitem(MODELS, "test-redux", entry)

    model = open_model("test-redux", "cpu")

    assert model.spec.name == "test-redux"
    assert model.spec.references.text_tokens == 4
    assert model.weights != open_model(str(dev_folder), "cpu").weights


def test_a_redux_alone_is_refused_with_what_would_open_it(tmp_path):
    folder = save_random_redux(tmp_path, small_config())
    index = {"_class_name": "FluxPriorReduxPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"lacks text_encoder/.*opened as flux1-redux-dev"):
        open_model(str(folder), "cpu")


def test_a_redux_fills_with_fill_and_is_refused_beside_what_looks_otherwise(
    fill_folder, kontext_folder, tmp_path
):
    folders = [
        save_random_redux(shutil.copytree(folder, tmp_path / folder.name), small_config())
        for folder in (fill_folder, kontext_folder)
    ]
    spec = open_model(str(folders[0]), "cpu").spec
    assert (spec.fills, spec.guidance, spec.references.most) == (True, 30.0, 4)
    with pytest.raises(LoadError, match="looks at no picture otherwise"):
        open_model(str(folders[1]), "cpu")


def test_a_part_of_redux_that_cannot_be_read_is_named(redux_folder, tmp_path):
    folder = shutil.copytree(redux_folder, tmp_path / "model")
    shutil.rmtree(folder / "feature_extractor")
    with pytest.raises(LoadError, match="feature_extractor/ cannot be read"):
        open_model(str(folder), "cpu")


def test_channels_that_no_variant_has_are_refused(tmp_path):
    config = small_config(head_dim=64, heads=1, double=1, single=1, in_channels=100)
    folder = save_random_flux(tmp_path / "odd", config)
    with pytest.raises(LoadError, match=r"reads 64 channels.* 128 or 384; this one 100"):
        open_model(str(folder), "cpu")


@pytest.mark.parametrize(
    ("more", "words"),
    [({"num_mode": 3}, "a union of several"), ({"conditioning_embedding_channels": 16}, "x-labs")],
)
def test_a_controlnet_of_another_kind_is_refused_by_what_it_has(
    controlnet_folder, tmp_path, more, words
):
    folder = shutil.copytree(controlnet_folder, tmp_path / "model")
    path = folder / "controlnet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    with pytest.raises(LoadError, match=words):
        open_model(str(folder), "cpu")


def test_a_controlnet_lies_beside_a_plain_model_only(controlnet_folder, fill_folder, tmp_path):
    folder = shutil.copytree(fill_folder, tmp_path / "model")
    shutil.copytree(controlnet_folder / "controlnet", folder / "controlnet")
    with pytest.raises(LoadError, match="beside a plain"):
        open_model(str(folder), "cpu")
