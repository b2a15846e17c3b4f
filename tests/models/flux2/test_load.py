"""Opening FLUX.2 folders: what each class says of itself, and what is missing or wrong."""

import contextlib
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from fluxline.engine.build import open_model
from fluxline.errors import CheckpointMismatch, ConfigError, LoadError
from fluxline.models.spec import EmpiricalShift
from tests.models.flux2.oracle import diffusers_model, small_config


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["klein"], tmp_path / "model")


def write(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_model_says_what_it_was_made_for(models):
    said = {"klein": (None, 1.0), "kv": (None, 1.0), "base": (None, 4.0), "dev": (4.0, 1.0)}
    for name, scales in said.items():
        spec = models[name].spec
        assert (spec.family, spec.grid) == ("flux2", 16)
        assert (spec.guidance, spec.cfg_scale) == scales
        assert spec.shift == EmpiricalShift()
        assert spec.references.most == 10


def test_a_distilled_model_takes_few_steps_and_the_others_many(folder):
    (folder / "fluxline.json").unlink()
    assert open_model(str(folder), "cpu").spec.default_steps == 4
    write(folder / "model_index.json", is_distilled=False)
    spec = open_model(str(folder), "cpu").spec
    assert (spec.default_steps, spec.native_size, spec.text_length) == (50, (1024, 1024), 512)


def test_a_model_that_remembers_is_distilled_though_it_does_not_say_so(folders, tmp_path):
    folder = shutil.copytree(folders["kv"], tmp_path / "model")
    (folder / "fluxline.json").unlink()
    model = open_model(str(folder), "cpu")
    assert model.remembers
    assert model.spec.default_steps == 4


def test_a_static_schedule_is_kept(folder):
    write(folder / "scheduler" / "scheduler_config.json", use_dynamic_shifting=False)
    assert open_model(str(folder), "cpu").spec.shift == 3.0


def test_layers_that_nobody_reads_are_not_kept(models):
    assert len(models["klein"].text._model.layers) == 27
    assert len(models["dev"].text._model.layers) == 30


def test_a_prompt_that_is_cut_is_told(models):
    short, long = models["klein"].encode(["a fox", "a fox, " * 20])
    assert (short.truncated, long.truncated) == (False, True)
    assert short.text.shape == long.text.shape == (48, 128)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae", "scheduler"])
def test_a_folder_without_a_part_is_refused_by_its_name(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(LoadError, match=f"lacks {part}/"):
        open_model(str(folder), "cpu")


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_that_cannot_be_read_is_named(folder, part):
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LoadError, match=f"{part}/ cannot be read"):
        open_model(str(folder), "cpu")


def test_a_missing_tensor_is_named(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["single_stream_modulation.linear.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointMismatch, match="modulation"):
        open_model(str(folder), "cpu")


def test_a_config_without_a_number_is_refused_by_its_name(folder):
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["num_single_layers"]
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="num_single_layers"):
        open_model(str(folder), "cpu")


def test_a_folder_without_an_index_is_a_base_model(folder):
    for name in ("model_index.json", "fluxline.json"):
        (folder / name).unlink()
    assert open_model(str(folder), "cpu").spec.default_steps == 50


def test_another_language_model_is_refused(folder):
    write(folder / "text_encoder" / "config.json", model_type="llama")
    with pytest.raises(ConfigError, match="qwen3 or mistral3"):
        open_model(str(folder), "cpu")


def test_parts_of_different_models_are_refused(folder):
    config = small_config(head_dim=64, double=1, single=1, text_dim=96)
    (folder / "transformer" / "config.json").unlink()
    diffusers_model(config).save_pretrained(folder / "transformer")
    with pytest.raises(LoadError, match=r"text_encoder/ of model gives 48 channels; .* reads 96"):
        open_model(str(folder), "cpu")


def test_a_text_encoder_of_too_few_layers_is_refused(folder):
    write(folder / "text_encoder" / "config.json", num_hidden_layers=20, layer_types=None)
    with pytest.raises(LoadError, match="text_encoder/ has 20 layers; 27 are read"):
        open_model(str(folder), "cpu")


def test_a_folder_without_a_transformer_is_refused(folder):
    shutil.rmtree(folder / "transformer")
    with pytest.raises(LoadError, match=r"flux2-\*\.safetensors"):
        open_model(str(folder), "cpu")


@pytest.mark.parametrize("template", [None, "{{ ''.__class__.__subclasses__() }}", "{% if %}"])
def test_a_tokenizer_without_a_chat_that_can_be_held_is_refused(folder, template):
    path = folder / "tokenizer" / "chat_template.jinja"
    path.unlink()
    if template is not None:
        path.write_text(template)
    with pytest.raises(LoadError, match="tokenizer/ cannot be read"):
        open_model(str(folder), "cpu")


def test_code_beside_the_weights_is_never_run(folder, monkeypatch):
    canary = folder / "canary"
    evil = f"open({str(canary)!r}, 'w').close()\nclass Evil: ...\n"
    wish = {
        "auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2},
        "trust_remote_code": True,
        "tokenizer_class": "Evil",
    }
    for path in (folder, *(part for part in folder.iterdir() if part.is_dir())):
        (path / "evil.py").write_text(evil)
    for path in folder.glob("*/*config.json"):
        write(path, **wish)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.chdir(folder)

    with contextlib.suppress(LoadError):
        open_model(str(folder), "cpu")

    assert not canary.exists()
