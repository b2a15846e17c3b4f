"""A fingerprint is the same for the same weights, and another for any that were trained further."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxline.errors import LoadError
from fluxline.weights.fingerprint import SAMPLE_BYTES, fingerprint
from fluxline.weights.stream import Checkpoint

LONG = SAMPLE_BYTES  # values: four times as many bytes as are read


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    names = ("a", "b", "tiny")
    sizes = (LONG, 2 * LONG, 1)
    return {
        name: torch.randn(size, generator=generator)
        for name, size in zip(names, sizes, strict=True)
    }


def saved(tensors, path, **metadata):
    save_file(tensors, path, metadata or None)
    return path


def test_a_copy_has_the_same_under_any_name(tmp_path, tensors):
    one, other = saved(tensors, tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    other.write_bytes(one.read_bytes())

    assert fingerprint([one]) == fingerprint([other])
    assert len(fingerprint([one])) == 32


@pytest.mark.parametrize("name", ["a", "b", "tiny"])
def test_a_change_of_any_one_tensor_is_seen(tmp_path, tensors, name):
    before = fingerprint([saved(tensors, tmp_path / "a.safetensors")])
    tensors[name] = tensors[name] * 1.0001

    assert fingerprint([saved(tensors, tmp_path / "a.safetensors")]) != before


def test_another_name_dtype_or_file_is_seen(tmp_path, tensors):
    path = saved(tensors, tmp_path / "a.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(path).items()}
    seen = [
        fingerprint([path]),
        fingerprint([path, path]),
        fingerprint([saved(zeros, tmp_path / "zeros.safetensors")]),
        fingerprint([saved(halves, tmp_path / "halves.safetensors")]),
        fingerprint([saved({f"x{k}": v for k, v in zeros.items()}, tmp_path / "x.safetensors")]),
    ]
    assert len(set(seen)) == len(seen)


def test_a_file_that_has_gone_is_told(tmp_path, tensors):
    path = saved(tensors, tmp_path / "a.safetensors")
    checkpoint = Checkpoint([path], source="model")
    assert checkpoint.fingerprint() == fingerprint([path])
    path.unlink()

    with pytest.raises(LoadError, match="cannot read model"):
        checkpoint.fingerprint()
