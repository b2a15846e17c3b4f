"""Measure, at start-up, what this machine likes: threads, and how many tokens a forward.

On a CPU with few cores, two threads can be slower than one for small matrices; on a GPU, batching
stops paying once a forward fills the card. Neither is guessed.
"""

import ctypes
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fluxline.ability import Footprint, InBands
from fluxline.engine.faults import is_out_of_memory
from fluxline.engine.peak import free_bytes, peak_of
from fluxline.engine.scheduler import DECODE_PIXELS, Budget
from fluxline.models.base import Banded, DiffusionModel, Pictures, PicturesInBands, taking
from fluxline.models.spec import ModelSpec
from fluxline.parallel.crew import Crew
from fluxline.wire import Prepare, TrialDecoding, TrialForward

LARGEST_BATCH_TOKENS = 8192  # of two rows or more; for each rank that may have rows of its own
RESIDENT_BATCHES = 16  # admitted jobs fill at most so many forwards
PAYS = 0.95  # stop at the smallest batch with this share of the best throughput
MALLOC = {"trim": (-1, 2**30), "top pad": (-2, 2**26), "mmap": (-3, 2**25)}  # malloc.h, bytes
ROUNDS = 3  # of trying thread counts
PATIENCE_S = 3.0  # measuring ends after about this long
DECODED_SIDE = 128  # px, on a CPU, where a picture of a large model takes minutes
SMALLEST_DECODED_SIDE = 64  # px, where larger pictures have no room to be measured
USABLE = 0.9  # of the free memory: the allocator's own and other programs' share is the rest

MeasuredT = TypeVar("MeasuredT")
Tell = Callable[[Prepare | TrialForward | TrialDecoding], None]


def nobody(said: Prepare | TrialForward | TrialDecoding) -> None:
    """There is no other rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was measured."""

    threads: int = 1  # CPU threads of one forward
    batch_tokens: int = 4096
    seconds_per_token: float = 1e-5
    footprint: Footprint | None = None

    @property
    def budget(self) -> Budget:
        """As much at once as pays and fits into the memory."""
        tokens, pixels, room = self.batch_tokens, DECODE_PIXELS, self.footprint
        if room is not None:
            tokens = min(tokens, int(room.free_bytes / room.token_bytes))
            pixels = min(pixels, room.whole_pixels)
        return Budget(
            batch_tokens=tokens,
            resident_tokens=RESIDENT_BATCHES * tokens,
            decode_pixels=pixels,
            footprint=room,
        )


def use_threads(threads: int) -> None:
    """Let torch use this many threads. For the calling thread's forwards; call it from there."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def use_device(device: torch.device) -> None:
    """Make a card the calling thread's own: NCCL, and what names no card, take that one."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)


def threads_in_use() -> int:
    """How many CPU threads forwards of the calling thread take."""
    return torch.get_num_threads()


def keep_memory() -> None:
    """Let the C library keep what a forward frees, for the next one; harmless where it cannot.

    On a CPU every large tensor otherwise comes as fresh pages: 12 % of a forward of 16 rows of the
    embedded model (November 2026, two AVX-512 cores).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in MALLOC.values():
            libc.mallopt(option, value)


def tune(model: DiffusionModel[Any], tell: Tell | None = None, crew: Crew | None = None) -> Tuning:
    """Time forwards of the native size with random input, and see what memory they take.

    tell, crew: hears of each before it, and runs it, where other ranks have a part in it. Leaves
    the thread count changed.
    """
    deadline = time.perf_counter() + PATIENCE_S
    crew = crew or Crew.alone()
    probe = Probe(model, tell or nobody, crew)
    threads = 1
    if model.device.type == "cpu":
        threads = _best_threads(probe, deadline)
        use_threads(threads)
    rates = _rates(probe, deadline, crew)
    best = max(rates.values())
    enough = min(rows for rows, rate in rates.items() if rate >= PAYS * best)
    footprint = _footprint(model, probe, tell)
    return Tuning(
        threads=threads,
        batch_tokens=enough * probe.tokens,
        seconds_per_token=1.0 / best,
        footprint=footprint,
    )


def _rates(probe: "Probe", deadline: float, crew: Crew) -> dict[int, float]:
    """Tokens a second by rows of a forward: of one, and of more while they fit and time is left.

    Where other ranks draw along, one that has no room ends them all.
    """
    rates = {1: probe.tokens / probe.seconds(1)}
    rows, most_tokens = 2, LARGEST_BATCH_TOKENS * crew.most_at_once
    while (
        rows * probe.tokens <= most_tokens
        and probe.has_room(rows)
        and time.perf_counter() <= deadline
    ):
        try:
            rates[rows] = rows * probe.tokens / probe.seconds(rows)
        except Exception as exc:
            if crew.is_shared or not is_out_of_memory(exc):
                raise
            break
        rows *= 2
    return rates


def _footprint(model: DiffusionModel[Any], probe: "Probe", tell: Tell | None) -> Footprint:
    """Fit lines to memory."""
    in_bands = None
    if isinstance(model, Banded) and tell is None:  # ranks have bands of their own
        vae = model.banded
        in_bands = _as_fits(model, partial(_in_bands, model, vae))
        with taking(vae, whole_pixels=math.inf):
            pixel_bytes = _as_fits(model, partial(_decoding, model))
    else:
        pixel_bytes = _decoding(model, *_decoded_size(model), tell or nobody)
    return Footprint(
        free_bytes=int(USABLE * (free_bytes(model.device) - model.awaited_bytes())),
        token_bytes=probe.token_bytes,
        pixel_bytes=pixel_bytes,
        in_bands=in_bands,
        grid=model.spec.grid,
    )


def _as_fits(model: DiffusionModel[Any], measure: Callable[[int, int], MeasuredT]) -> MeasuredT:
    """Measure how pictures of the native size are decoded or, as what is decoded in bands need not
    fit whole, with sides of a half, a quarter, and so on.
    """
    size = _decoded_size(model)
    while True:
        try:
            return measure(*size)
        except Exception as exc:
            if min(size) < 2 * SMALLEST_DECODED_SIDE or not is_out_of_memory(exc):
                raise
        size = model.spec.snapped(size[0] // 2, size[1] // 2)


def _decoding(model: DiffusionModel[Any], width: int, height: int, tell: Tell = nobody) -> float:
    """Bytes a pixel that decoding a picture takes."""
    tell(TrialDecoding(width, height))
    with peak_of(model.device) as peak:
        decode_noise(model, width, height)
    return peak.bytes / (width * height)


def decode_noise(model: DiffusionModel[Any], width: int, height: int) -> None:
    """Decode a picture of nothing."""
    x = model.noise(torch.Generator("cpu").manual_seed(0), width, height)[None]
    model.decode(x, width, height)


def _in_bands(model: DiffusionModel[Any], vae: PicturesInBands, width: int, height: int) -> InBands:
    """What decoding in bands takes: a line through an eighth of a picture and a half, as bands."""
    pixels = width * height
    small, large = pixels // 8, pixels // 2
    small_peak, large_peak = (
        _peak_in_bands(model, vae, width, height, band_pixels) for band_pixels in (small, large)
    )
    band_bytes = max(0.0, (large_peak - small_peak) / (large - small))
    kept_bytes = (large_peak - large * band_bytes) / pixels
    return InBands(kept_bytes=kept_bytes, band_bytes=band_bytes, band_pixels=vae.band_pixels)


def _peak_in_bands(
    model: DiffusionModel[Any], vae: PicturesInBands, width: int, height: int, band_pixels: int
) -> int:
    with (
        taking(vae, whole_pixels=0, band_pixels=band_pixels),
        peak_of(model.device) as peak,
    ):
        decode_noise(model, width, height)
    return peak.bytes


def _decoded_size(model: DiffusionModel[Any]) -> tuple[int, int]:
    size = model.spec.native_size
    if model.device.type != "cuda":
        size = (min(size[0], DECODED_SIDE), min(size[1], DECODED_SIDE))
    return model.spec.snapped(*size)


def _best_threads(probe: "Probe", deadline: float) -> int:
    """The count with the fastest forward of one row, among 1, 2, 4, … and all cores.

    Taken in turn, so that a neighbour's moment does not decide; more threads if it is all the same.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = sorted({min(2**i, cores or 1) for i in range(8)})
    timed: dict[int, float] = {}
    for count in ROUNDS * counts[::-1]:  # all cores first: the likely choice of a large model
        use_threads(count)
        timed[count] = min(timed.get(count, math.inf), probe.seconds(1))
        if time.perf_counter() > deadline:
            break
    enough = min(timed.values()) / PAYS
    return max(count for count, seconds in timed.items() if seconds <= enough)


class Probe:
    """A forward with random input at the native size."""

    def __init__(self, model: DiffusionModel[Any], tell: Tell, crew: Crew) -> None:
        self._model, self._tell, self._crew = model, tell, crew
        self.token_bytes = 0.0  # the most that a forward took so far
        tell(Prepare())
        width, height = model.spec.snapped(*model.spec.native_size)
        self._x = model.noise(torch.Generator("cpu").manual_seed(0), width, height)
        (conditioning,) = model.encode(["a picture"])
        self._context = model.context(
            conditioning,
            width=width,
            height=height,
            guidance=model.spec.guidance,
            sigmas=[1.0],
            guide=model.guide(_blank_pictures(model.spec, width, height)),
        )
        self.tokens = self._context.image_tokens + self._context.text_tokens

    def has_room(self, rows: int) -> bool:
        """Whether so many may be tried, as far as those before tell."""
        free = free_bytes(self._model.device) - self._model.awaited_bytes()
        return bool(rows * self.tokens * self.token_bytes <= USABLE * free)

    def seconds(self, rows: int) -> float:
        """The faster of two forwards after one to warm up; the warm-up alone if it is slow."""
        with peak_of(self._model.device) as peak:
            first = self.once(rows)
        self.token_bytes = max(self.token_bytes, peak.bytes / (rows * self.tokens))
        return first if first > PATIENCE_S / 3 else min(self.once(rows) for _ in range(2))

    def once(self, rows: int) -> float:
        """Seconds of a forward."""
        x = self._x.expand(rows, *self._x.shape).contiguous()
        self._tell(TrialForward(rows))
        began = time.perf_counter()
        velocity = self._crew.evaluate(rows, lambda own: self._evaluate(x[own]))
        velocity[0, 0, 0].item()  # wait for the device
        return time.perf_counter() - began

    def _evaluate(self, x: Tensor) -> Tensor:
        rows = len(x)
        return self._model.evaluate(x, [1.0] * rows, [self._context] * rows) if rows else x


def _blank_pictures(spec: ModelSpec, width: int, height: int) -> Pictures:
    """Pictures of nothing, for a model that draws nothing without."""
    if spec.fills:
        canvas = torch.zeros((height, width, 3), dtype=torch.uint8)
        return Pictures(canvas=canvas, mask=torch.full((height, width), 255, dtype=torch.uint8))
    if spec.references is not None and spec.references.is_needed:
        wide, high = spec.reference_size((width, height), (width, height))
        return Pictures(references=(torch.zeros((high, wide, 3), dtype=torch.uint8),))
    return Pictures()
