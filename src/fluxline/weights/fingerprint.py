"""A short name for what weights say, so that a picture can name what drew it.

Not a seal: somebody who wants two checkpoints to bear one name can make them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

SAMPLE_BYTES = 4096  # of each tensor


def fingerprint(files: Sequence[Path]) -> str:
    """Hash the headers of safetensors files and the start of every tensor: 32 hex digits.

    Headers alone would not do: models of one architecture differ in nothing but values. Training
    and merging alter whole tensors, so their starts tell. Reads 6 MB of the 34 GB of FLUX.1.
    Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb", buffering=0) as raw:
            header_bytes = int.from_bytes(raw.read(8), "little")
            header = raw.read(header_bytes)
            first = 8 + header_bytes
            spans = [(first + begin, first + end) for begin, end in _spans(header)]
            _add(digest, raw, header, spans)
    return digest.hexdigest()


def fingerprint_of(file: Path, header_bytes: int, spans: Sequence[tuple[int, int]]) -> str:
    """The same of a file of another kind, whose tensors lie at these bytes. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb", buffering=0) as raw:
        _add(digest, raw, raw.read(header_bytes), spans)
    return digest.hexdigest()


def _add(
    digest: "hashlib.blake2b", raw: IO[bytes], header: bytes, spans: Sequence[tuple[int, int]]
) -> None:
    digest.update(header)
    for begin, end in spans:
        raw.seek(begin)
        digest.update(raw.read(min(end - begin, SAMPLE_BYTES)))


def _spans(header: bytes) -> list[tuple[int, int]]:
    """First byte and last (excluded) of every tensor, counted from the end of the header."""
    said = json.loads(header)
    return sorted(tuple(said[name]["data_offsets"]) for name in said if name != "__metadata__")
