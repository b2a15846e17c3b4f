"""Which family a model's files are of, where no name says it."""

import json

import pytest

from fluxline.engine.build import open_model
from fluxline.errors import LoadError
from fluxline.models.registry import FAMILIES, FAMILY_OF_CLASS, MODELS, entry_for, family_of


@pytest.fixture
def saying(tmp_path):
    """A folder whose configurations name these classes."""

    def make(pipeline=None, transformer=None):
        (tmp_path / "transformer").mkdir(exist_ok=True)
        for file, name in (("model_index", pipeline), ("transformer/config", transformer)):
            if name is not None:
                (tmp_path / f"{file}.json").write_text(json.dumps({"_class_name": name}))
        return tmp_path

    return make


@pytest.mark.parametrize("name", FAMILY_OF_CLASS)
def test_a_folder_is_of_the_family_whose_class_it_names(saying, name):
    assert family_of(saying(pipeline=name)) == FAMILY_OF_CLASS[name]


def test_the_transformer_says_it_where_the_pipeline_is_unknown(saying):
    assert family_of(saying(pipeline="MyPipeline", transformer="FluxTransformer2DModel")) == "flux1"
    assert family_of(saying(pipeline=["evil"], transformer="FluxTransformer2DModel")) == "flux1"


def test_a_single_file_is_of_its_folders_family(saying):
    assert family_of(saying(pipeline="FluxPipeline") / "flux1-dev.safetensors") == "flux1"


def test_an_unknown_family_is_refused_by_its_name(saying):
    with pytest.raises(LoadError, match="AudioLDMPipeline"):
        open_model(str(saying(pipeline="AudioLDMPipeline")), "cpu")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_class_name": 3}'])
def test_a_folder_that_names_no_class_is_refused(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(LoadError, match=r"model_index\.json"):
        open_model(str(tmp_path), "cpu")


def test_every_family_named_here_can_be_opened():
    assert {entry.family for entry in MODELS.values()} | set(FAMILY_OF_CLASS.values()) <= set(
        FAMILIES
    )
    assert entry_for("somebody/something").family is None
