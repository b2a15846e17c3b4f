"""Measure, at start-up, what this machine likes: threads, and how many tokens a forward.

On a CPU with few cores, two threads can be slower than one for small matrices; on a GPU, batching
stops paying once a forward fills the card. Neither is guessed.
"""

import ctypes
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from fluxline.engine.faults import is_out_of_memory
from fluxline.models.base import DiffusionModel, ModelSpec, Pictures

LARGEST_BATCH_TOKENS = 8192
PAYS = 0.95  # stop at the smallest batch with this share of the best throughput
MALLOC = {"trim": (-1, 2**30), "top pad": (-2, 2**26), "mmap": (-3, 2**25)}  # malloc.h, bytes
ROUNDS = 3  # of trying thread counts
PATIENCE_S = 3.0  # measuring ends after about this long


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was measured."""

    threads: int = 1  # CPU threads of one forward
    batch_tokens: int = 4096
    seconds_per_token: float = 1e-5


def use_threads(threads: int) -> None:
    """Let torch use this many threads. For the calling thread's forwards; call it from there."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


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


def tune(model: DiffusionModel[Any]) -> Tuning:
    """Time forwards of the native size with random input. Leaves the thread count changed."""
    deadline = time.perf_counter() + PATIENCE_S
    probe = _Probe(model)
    threads = 1
    if model.device.type == "cpu":
        threads = _best_threads(probe, deadline)
        use_threads(threads)
    rates: dict[int, float] = {}  # rows -> tokens a second
    rows = 1
    while rows * probe.tokens <= LARGEST_BATCH_TOKENS:
        try:
            rates[rows] = rows * probe.tokens / probe.seconds(rows)
        except Exception as exc:
            if rows == 1 or not is_out_of_memory(exc):
                raise
            break
        rows *= 2
        if time.perf_counter() > deadline:
            break
    best = max(rates.values(), default=1e5)
    enough = min((r for r, rate in rates.items() if rate >= PAYS * best), default=1)
    return Tuning(threads=threads, batch_tokens=enough * probe.tokens, seconds_per_token=1.0 / best)


def _best_threads(probe: "_Probe", deadline: float) -> int:
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


class _Probe:
    """A forward with random input at the native size."""

    def __init__(self, model: DiffusionModel[Any]) -> None:
        self._model = model
        width, height = model.spec.native_size
        self._x = model.noise(torch.Generator("cpu").manual_seed(0), width, height)
        (conditioning,) = model.encode(["a picture"])
        self._context = model.context(
            conditioning,
            width=width,
            height=height,
            guidance=model.spec.guidance,
            sigmas=[1.0],
            guide=model.guide(_blank_pictures(model.spec)),
        )
        self.tokens = self._context.image_tokens + self._context.text_tokens

    def seconds(self, rows: int) -> float:
        """The faster of two forwards after one to warm up; the warm-up alone if it is slow."""
        x = self._x.expand(rows, *self._x.shape).contiguous()
        first = self._timed(x, rows)
        return first if first > PATIENCE_S / 3 else min(self._timed(x, rows) for _ in range(2))

    def _timed(self, x: torch.Tensor, rows: int) -> float:
        began = time.perf_counter()
        velocity = self._model.evaluate(x, [1.0] * rows, [self._context] * rows)
        velocity[0, 0, 0].item()  # wait for the device
        return time.perf_counter() - began


def _blank_pictures(spec: ModelSpec) -> Pictures:
    """Pictures of nothing, for a model that draws nothing without."""
    width, height = spec.native_size
    if spec.fills:
        canvas = torch.zeros((height, width, 3), dtype=torch.uint8)
        return Pictures(canvas=canvas, mask=torch.full((height, width), 255, dtype=torch.uint8))
    if spec.references is not None and spec.references.is_needed:
        wide, high = spec.reference_size(spec.native_size, spec.native_size)
        return Pictures(references=(torch.zeros((high, wide, 3), dtype=torch.uint8),))
    return Pictures()
