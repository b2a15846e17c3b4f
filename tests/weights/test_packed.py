"""Weights that are quantized in their files come as they are, or in full where that is needed."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fluxline.errors import CheckpointMismatch, LoadError
from fluxline.linear.quantized import OWN_KINDS, QuantizedLinear, pack, unpack
from fluxline.weights.packed import Packed, metadata
from fluxline.weights.stream import Checkpoint
from tests.linear.conftest import weight_of

WEIGHT = weight_of(32, 64)


def layout(name, tensor):
    """A dialect of one layer; its halves may come apart."""
    known = {"theirs.weight": 0, "low.weight": 0, "high.weight": 16}
    return [("layer.weight", known[name], tensor)] if name in known else None


def model(kind=None):
    linear = nn.Linear(64, 32, bias=False)
    layer = linear if kind is None else QuantizedLinear(OWN_KINDS[kind], linear)
    return nn.ModuleDict({"layer": layer})


def checkpoint(folder, tensors, said=None):
    save_file(tensors, folder / "one.safetensors", said)
    return Checkpoint([folder / "one.safetensors"], source="test", unpack=unpack)


def own(folder, kind):
    """A file of ours with one weight."""
    fields = pack(OWN_KINDS[kind], WEIGHT)
    held = Packed(kind, tuple(WEIGHT.shape), fields, unpack)
    tensors = {f"theirs.weight.{name}": field for name, field in fields.items()}
    return checkpoint(folder, tensors, metadata({"theirs.weight": held}))


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_a_file_of_ours_says_what_it_holds(tmp_path, kind):
    found = own(tmp_path, kind)

    assert found.shapes == {"theirs.weight": (32, 64)}
    assert found.kinds == {"theirs.weight": kind}


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_what_holds_that_kind_takes_it_as_it_is(tmp_path, kind):
    target = model(kind)

    own(tmp_path, kind).fill(target, layout)

    expected = unpack(kind, pack(OWN_KINDS[kind], WEIGHT), 64)
    torch.testing.assert_close(target["layer"].dequantized(), expected)


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_a_parameter_is_given_the_full_weight(tmp_path, kind):
    target = model()

    own(tmp_path, kind).fill(target, layout)

    assert torch.equal(target["layer"].weight, unpack(kind, pack(OWN_KINDS[kind], WEIGHT), 64))


def test_full_weights_are_quantized_part_by_part(tmp_path):
    target = model("int8")

    checkpoint(tmp_path, {"high.weight": WEIGHT[16:], "low.weight": WEIGHT[:16]}).fill(
        target, layout
    )

    assert torch.equal(
        target["layer"].dequantized(), unpack("int8", pack(OWN_KINDS["int8"], WEIGHT), 64)
    )


def test_the_account_is_as_strict(tmp_path):
    with pytest.raises(CheckpointMismatch, match=r"missing.*layer\.weight"):
        checkpoint(tmp_path, {"low.weight": WEIGHT[:16].clone()}).fill(model("int8"), layout)
    with pytest.raises(CheckpointMismatch, match="wrong shape"):
        checkpoint(tmp_path, {"low.weight": WEIGHT[:16, :60].clone()}).fill(model("int8"), layout)
    twice = {"low.weight": WEIGHT[:16].clone(), "theirs.weight": WEIGHT}
    with pytest.raises(CheckpointMismatch, match=r"unexpected.*\.weight"):
        checkpoint(tmp_path, twice).fill(model("int8"), layout)


@pytest.mark.parametrize("scale", [None, "scale_weight", "weight_scale"])
def test_float8_of_other_people_is_kept_with_its_scale(tmp_path, scale):
    codes = (WEIGHT * 100).to(torch.float8_e4m3fn)
    tensors = {"theirs.weight": codes, "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    if scale:
        tensors |= {f"theirs.{scale}": torch.tensor(0.01), "theirs.scale_input": torch.tensor(1.0)}
    found, target = checkpoint(tmp_path, tensors), model("fp8")

    found.fill(target, layout)

    assert found.kinds == {"theirs.weight": "fp8"}
    assert torch.equal(
        target["layer"].dequantized(), codes.float() * (0.01 if scale else torch.tensor(1.0))
    )


@pytest.mark.parametrize(
    "said",
    ["[", "[]", '{"a": 1}', '{"a": ["nf4", [1, 2, 3], []]}', '{"a": ["nf4", [1, 2], ["x"]]}'],
)
def test_metadata_that_lie_are_a_clear_error(tmp_path, said):
    with pytest.raises(LoadError, match=r"cannot read one\.safetensors of test"):
        checkpoint(tmp_path, {"x": torch.zeros(1)}, {"fluxline": said})


def test_who_cannot_unpack_says_so(tmp_path):
    own(tmp_path, "nf4")

    with pytest.raises(LoadError, match="nf4, which is not read here"):
        Checkpoint([tmp_path / "one.safetensors"], source="test").fill(model(), layout)
