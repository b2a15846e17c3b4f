"""A strict account of every tensor."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fluxline.errors import CheckpointMismatch, LoadError
from fluxline.weights.locate import locate, safetensors_in
from fluxline.weights.stream import Checkpoint


def model() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(2, 4, bias=False), "b": nn.Linear(4, 1, bias=False)})


def layout(name, tensor):
    """Two halves make up `a`; `b` is itself; nothing else is known."""
    known = {"a.low": ("a.weight", 0), "a.high": ("a.weight", 2), "b": ("b.weight", 0)}
    return [(*known[name], tensor)] if name in known else None


GOOD = {
    "a.low": torch.zeros(2, 2),
    "a.high": torch.ones(2, 2),
    "b": torch.full((1, 4), 3.0),
}


def checkpoint(folder, **tensors):
    save_file(tensors, folder / "one.safetensors")
    return Checkpoint([folder / "one.safetensors"], source="test")


def test_parts_are_fused_where_the_layout_says(tmp_path):
    target = model()

    checkpoint(tmp_path, **GOOD).fill(target, layout)

    assert target["a"].weight.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert target["b"].weight.tolist() == [[3, 3, 3, 3]]


def test_shards_are_one_checkpoint(tmp_path):
    target = model()
    for i, (name, tensor) in enumerate(GOOD.items()):
        save_file({name: tensor}, tmp_path / f"model-{i}-of-3.safetensors")

    Checkpoint(safetensors_in(tmp_path), source="test").fill(target, layout)

    assert target["b"].weight[0, 0] == 3


def test_values_are_cast_to_the_parameter(tmp_path):
    target = model()
    half = {name: tensor.half() for name, tensor in GOOD.items()}

    checkpoint(tmp_path, **half).fill(target, layout)

    assert target["a"].weight.dtype == torch.float32


def test_every_fault_is_named_in_one_error(tmp_path):
    tensors = {"a.low": GOOD["a.low"], "b": torch.zeros(1, 5), "stranger": torch.zeros(1)}

    with pytest.raises(CheckpointMismatch) as caught:
        checkpoint(tmp_path, **tensors).fill(model(), layout)

    assert caught.value.missing == ("a.weight", "b.weight")
    assert caught.value.unexpected == ("stranger",)
    assert caught.value.shapes == {"b": ((1, 5), (1, 4))}
    for word in ("a.weight", "stranger", "(1, 5)", "(1, 4)"):
        assert word in caught.value.message


def test_rows_filled_twice_are_unexpected(tmp_path):
    twice = {**GOOD, "again": torch.zeros(2, 2)}

    def doubled(name, tensor):
        return [("a.weight", 0, tensor)] if name == "again" else layout(name, tensor)

    with pytest.raises(CheckpointMismatch) as caught:
        checkpoint(tmp_path, **twice).fill(model(), doubled)
    assert len(caught.value.unexpected) == 1


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors", b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"]
)
def test_a_broken_file_is_a_clear_error(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)

    with pytest.raises(LoadError, match=r"bad\.safetensors"):
        Checkpoint([tmp_path / "bad.safetensors"], source="test")


def test_pickled_weights_are_not_read(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")

    with pytest.raises(LoadError, match="only safetensors"):
        safetensors_in(tmp_path)


def test_a_name_that_is_nothing_says_what_would_be():
    with pytest.raises(LoadError, match="a registry name, a folder"):
        locate("flux9")


def test_a_model_that_was_not_pulled_says_how_to():
    with pytest.raises(LoadError, match="fluxline models pull nobody/nothing"):
        locate("nobody/nothing")
