"""What one of many ranks holds of a network, without the others."""

from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxline.degrees import Degrees
from fluxline.engine.build import checkpoint_at, open_model
from fluxline.engine.intake import Intake
from fluxline.engine.job import Plan
from fluxline.engine.precision import Precision
from fluxline.engine.quantize import quantize
from fluxline.engine.runner import Runner
from fluxline.engine.shares import Share
from fluxline.engine.ticket import new_request
from fluxline.errors import ConfigError, DeviceLost, LoadError
from fluxline.models.flux1.load import transformer_part
from fluxline.models.flux1.transformer import FluxTransformer
from fluxline.models.registry import open_family
from fluxline.parallel.tensor import SharedLinear
from tests.models.flux1.oracle import diffusers_model, small_config
from tests.models.flux1.test_precision import peak_bytes


@dataclass
class Place:
    """A rank's place among others who are not there."""

    size: int
    rank: int


def opened(folder, size, rank, precision="fp32"):
    """A rank's share of the transformer in a folder."""
    held = Precision(precision)
    config, part = transformer_part(folder, checkpoint_at)
    with torch.device("meta"):
        model = FluxTransformer(config)
    part = Share(Place(size, rank), held)(model, part)
    held.place(model, part, torch.device("cpu"))
    model.to_empty(device="cpu")
    part.checkpoint.fill(model, part.layout)
    return model


def crew_of(size, axis="tensor"):
    """A rank of so many that hold weights together, or blocks."""
    degrees = Degrees(**{axis: size})
    return SimpleNamespace(
        weights=Place(degrees.tensor, 0),
        blocks=Place(degrees.stages, 0),
        degrees=degrees,
        is_shared=size > 1,
    )


def bytes_of(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def shared_bytes(model):
    layers = [module for module in model.modules() if isinstance(module, SharedLinear)]
    return sum(bytes_of(layer) for layer in layers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A transformer of which one tensor is a small part; it has seven heads."""
    folder = tmp_path_factory.mktemp("shares")
    config = small_config(head_dim=32, heads=7, double=2, single=10)
    diffusers_model(config).save_pretrained(folder / "transformer")
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("size", [2, 3])
def test_no_rank_ever_holds_the_whole_weights(folder, size, precision):
    [file] = (folder / "transformer").glob("*.safetensors")
    whole = opened(folder, 1, 0, precision)

    for rank in range(size):
        peak, model = peak_bytes(
            lambda rank=rank: opened(folder, size, rank, precision), file.stat().st_size
        )
        share = shared_bytes(model) / shared_bytes(whole)
        assert abs(share - 1 / size) < 0.1 / size  # a head of seven more or less, and biases
        everywhere = bytes_of(whole) - shared_bytes(whole)
        assert bytes_of(model) == everywhere + shared_bytes(model)
        temporaries = 4 * 4 * 5 * whole.config.hidden**2  # copies of the largest tensor
        assert peak < bytes_of(model) + temporaries
        assert bytes_of(model) + temporaries < 0.9 * bytes_of(opened(folder, 1, 0))


def test_every_row_is_somebodys_and_no_row_is_two_ranks(folder):
    whole = opened(folder, 1, 0).state_dict()
    shares = [opened(folder, 3, rank).state_dict() for rank in range(3)]

    name = "single_blocks.0.proj_in.base.weight"
    held = torch.cat([share[name] for share in shares])

    assert sorted(held.sum(1).tolist()) == sorted(whole[name].sum(1).tolist())
    assert len(held) == len(whole[name])


def test_more_ranks_than_heads_are_refused(schnell_folder):
    with pytest.raises(ConfigError, match=r"a head of attention for each rank; .* has 2"):
        open_model(str(schnell_folder), "cpu", crew=crew_of(3))


def test_what_fails_on_one_rank_while_others_wait_for_its_weights_ends_them_all(schnell):
    model = copy(schnell)
    model.context = lambda *given, **named: 1 / 0
    runner = Runner(model, lambda: None, crew=crew_of(2))
    intake = Intake(model.spec, lambda loras: (), is_technical=False)
    request = new_request("a boat", seed=3, params={"steps": 1})

    with pytest.raises(DeviceLost, match="ZeroDivisionError"):
        runner.execute(Plan(admit=tuple(intake.jobs_of(request))))


def test_more_ranks_than_blocks_are_refused(schnell_folder):
    with pytest.raises(ConfigError, match=r"stages=64 needs a block for each rank; .* has"):
        open_model(str(schnell_folder), "cpu", crew=crew_of(64, "stages"))


@pytest.mark.parametrize("axis", ["tensor", "stages"])
@pytest.mark.parametrize("memory", ["offload", "stream", "spread"])
def test_a_share_visits_no_card(schnell_folder, memory, axis):
    with pytest.raises(ConfigError, match=f"with {axis}=2 .* on its device: memory {memory}"):
        open_model(str(schnell_folder), "cpu", memory=memory, crew=crew_of(2, axis))


def test_a_family_of_diffusers_is_not_cut(tmp_path):
    with pytest.raises(
        ConfigError, match=r"family sana cannot be cut by weights.* use cfg or data"
    ):
        open_family(
            "sana",
            tmp_path,
            name="sana",
            device=torch.device("cpu"),
            dtype=torch.float32,
            checkpoint_at=checkpoint_at,
            precision=Precision(),
            share=Share(Place(2, 0), Precision()),
        )


def test_what_is_quantized_is_cut_only_unpacked(schnell_folder, tmp_path):
    quantize(str(schnell_folder), "int8", tmp_path / "int8")

    with pytest.raises(ConfigError, match=r"as int8, .* tensor=2: use precision bf16 or fp32"):
        open_model(str(tmp_path / "int8"), "cpu", crew=crew_of(2))
    half = open_model(str(tmp_path / "int8"), "cpu", "fp32", crew=crew_of(2)).transformer

    whole = open_model(str(tmp_path / "int8"), "cpu", "fp32").transformer
    ours, theirs = (model.double_blocks[0].image for model in (half, whole))
    columns = theirs.mlp_out.in_features // 2
    assert torch.equal(ours.mlp_out.base.weight, theirs.mlp_out.weight[:, :columns])


def test_a_checkpoint_of_other_widths_is_refused(folder, tmp_path):
    (tmp_path / "transformer").mkdir()
    [file] = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    name = "single_transformer_blocks.3.proj_out.weight"
    tensors[name] = torch.cat((tensors[name], tensors[name]), dim=1)
    save_file(tensors, tmp_path / "transformer" / file.name)
    config = (folder / "transformer" / "config.json").read_bytes()
    (tmp_path / "transformer" / "config.json").write_bytes(config)

    with pytest.raises(LoadError, match=r"a weight of \(224, 2240\) .* does not fit a layer"):
        opened(tmp_path, 2, 0)
