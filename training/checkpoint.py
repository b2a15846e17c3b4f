"""A checkpoint is a folder of pieces, none above 16 MiB: small enough to be moved one by one."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import torch

PIECE_BYTES = 15 * 2**20


def write(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint; one that is cut short leaves the old one."""
    file = io.BytesIO()
    torch.save(state, file)
    data = file.getbuffer()
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for k, first in enumerate(range(0, len(data), PIECE_BYTES)):
        (part / f"{k:03}.pt").write_bytes(data[first : first + PIECE_BYTES])
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def read(folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Read what `write` wrote."""
    data = b"".join(piece.read_bytes() for piece in sorted(folder.glob("*.pt")))
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location=device)
    return state
