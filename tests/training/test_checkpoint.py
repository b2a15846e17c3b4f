"""Checkpoints: small pieces, and what was written."""

import torch

from training import checkpoint


def test_a_checkpoint_comes_back_from_pieces_of_at_most_16_mib(tmp_path):
    folder = tmp_path / "run"
    state = {"model": {"w": torch.randn(3000, 2000)}, "step": 7}
    checkpoint.write(folder, state)
    sizes = [piece.stat().st_size for piece in folder.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 16 * 2**20
    back = checkpoint.read(folder)
    assert back["step"] == 7
    assert torch.equal(back["model"]["w"], state["model"]["w"])


def test_a_shorter_checkpoint_leaves_nothing_of_the_longer_one(tmp_path):
    folder = tmp_path / "run"
    checkpoint.write(folder, {"w": torch.zeros(5_000_000)})
    checkpoint.write(folder, {"w": torch.ones(2)})
    assert torch.equal(checkpoint.read(folder)["w"], torch.ones(2))
