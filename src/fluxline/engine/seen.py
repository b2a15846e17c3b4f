"""What a model made of the pictures that jobs give it: shared by jobs, kept while there is room."""

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from fluxline.engine.cache import ByteLRU
from fluxline.engine.job import Job, Picture
from fluxline.linear.lora import AdapterBank, Mix
from fluxline.models.base import Adaptable, DiffusionModel, Guide, Pictures

CLEAN_TOKENS_BYTES = 16 * 2**20  # 64 pictures of a megapixel
GUIDE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class CleanTokens:
    """What the VAE made of a picture: (N, C) float32, on the model's device, never written."""

    tokens: Tensor

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return self.tokens.nbytes


class Seen:
    """Thread: the engine's. bank: what acts where a model reads pictures as it reads noise.

    Guides that no row needs now are kept while guide_bytes hold them (None: the usual ones); those
    of rows in flight are theirs to share, however large they are.
    """

    def __init__(
        self, model: DiffusionModel[Any], bank: AdapterBank, *, guide_bytes: int | None = None
    ) -> None:
        self._model = model
        self._bank = bank
        self._clean: ByteLRU[CleanTokens] = ByteLRU(CLEAN_TOKENS_BYTES)
        self._kept: ByteLRU[Guide] = ByteLRU(GUIDE_BYTES if guide_bytes is None else guide_bytes)
        self._in_flight: WeakValueDictionary[str, Guide] = WeakValueDictionary()

    def clean(self, picture: Picture) -> Tensor:
        """The tokens of a picture that a job starts from; jobs that start from the same share."""
        key = _name_of(picture)
        known = self._clean.get(key)
        if known is None:
            known = CleanTokens(self._model.encode_picture(as_tensor(picture)))
            self._clean.put(key, known)
        return known.tokens

    def name_of_guide(self, job: Job) -> str:
        """Of the pictures that the model itself reads, and of the adapters that act on what is
        read; empty: there are none to read."""
        pictures = [*job.references]
        if self._model.spec.fills and job.source and job.source.mask:
            pictures += [job.source.drawn, job.source.mask]
        worn = [(adapter.digest, strength) for adapter, strength in self._acting(job)]
        return repr(([*map(_name_of, pictures)], worn)) if pictures else ""

    def guide(self, job: Job) -> Guide | None:
        """What the model reads of a job's pictures itself; jobs share what has one name."""
        name = self.name_of_guide(job)
        if not name:
            return None
        guide = self._kept.get(name) or self._in_flight.get(name)
        if guide is None:
            with self._bank.rows([self._acting(job)]):
                guide = self._model.guide(self._pictures(job))
        if guide is not None:
            self._kept.put(name, guide)  # on every use: rows in flight may have outlived its place
            self._in_flight[name] = guide
        return guide

    def _acting(self, job: Job) -> Mix:
        """Those of a job's adapters that do something where pictures are read."""
        if not isinstance(self._model, Adaptable):
            return ()
        stages = self._model.guide_stages
        return tuple((adapter, s) for adapter, s in job.mix if stages & adapter.stages)

    def _pictures(self, job: Job) -> Pictures:
        pictures = Pictures(references=tuple(map(as_tensor, job.references)))
        if self._model.spec.fills and job.source and job.source.mask:
            canvas, mask = as_tensor(job.source.drawn), as_tensor(job.source.mask)
            pictures = replace(pictures, canvas=canvas, mask=mask)
        return pictures


def as_tensor(picture: Picture) -> Tensor:
    """Its pixels, uint8."""
    return torch.from_numpy(np.array(picture.pixels))  # a copy: torch wants it writable


def _name_of(picture: Picture) -> str:
    return f"{picture.digest} {picture.pixels.shape}"
