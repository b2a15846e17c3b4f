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
from fluxline.engine.peak import free_bytes, peak_of
from fluxline.models.base import DiffusionModel
from fluxline.request import Footprint

LARGEST_BATCH_TOKENS = 8192
PAYS = 0.95  # stop at the smallest batch with this share of the best throughput
MALLOC = {"trim": (-1, 2**30), "top pad": (-2, 2**26), "mmap": (-3, 2**25)}  # malloc.h, bytes
ROUNDS = 3  # of trying thread counts
PATIENCE_S = 3.0  # measuring ends after about this long
DECODED_SIDE = 128  # px, on a CPU, where a picture of a large model takes minutes
USABLE = 0.9  # of the free memory: the allocator's own and other programs' share is the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was measured."""

    threads: int = 1  # CPU threads of one forward
    batch_tokens: int = 4096
    seconds_per_token: float = 1e-5
    footprint: Footprint | None = None

    def fitting(self, decode_pixels: int) -> tuple[int, int]:
        """Tokens of a forward and pixels of a decoding that pay and fit into the memory."""
        if self.footprint is None:
            return self.batch_tokens, decode_pixels
        room = self.footprint.free_bytes
        return (
            min(self.batch_tokens, int(room / self.footprint.token_bytes)),
            min(decode_pixels, int(room / self.footprint.pixel_bytes)),
        )


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
    """Time forwards of the native size with random input, and see what memory they take.

    Leaves the thread count changed.
    """
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
    return Tuning(
        threads=threads,
        batch_tokens=enough * probe.tokens,
        seconds_per_token=1.0 / best,
        footprint=_footprint(model, probe, row_s=probe.tokens / rates[1]),
    )


def _footprint(model: DiffusionModel[Any], probe: "_Probe", *, row_s: float) -> Footprint:
    """Fit a line to memory and a parabola to time. row_s: of a forward of one row."""
    token_s, pair_s = row_s / probe.tokens, 0.0
    if row_s < PATIENCE_S / 3:
        small = _Probe(model, shrunk=2)
        bend = token_s - small.seconds(1) / small.tokens
        pair_s = max(0.0, min(bend / (probe.tokens - small.tokens), token_s / probe.tokens))
        token_s -= pair_s * probe.tokens
    pixel_bytes, pixel_s = _decoding(model)
    return Footprint(
        free_bytes=int(USABLE * free_bytes(model.device)),
        token_bytes=probe.token_bytes,
        pixel_bytes=pixel_bytes,
        token_s=token_s,
        pair_s=pair_s,
        pixel_s=pixel_s,
        grid=model.spec.grid,
    )


def _decoding(model: DiffusionModel[Any]) -> tuple[float, float]:
    """Bytes and seconds a pixel of decoding a picture takes."""
    size = model.spec.native_size
    if model.device.type != "cuda":
        size = (min(size[0], DECODED_SIDE), min(size[1], DECODED_SIDE))
    width, height = model.spec.snapped(*size)
    x = model.noise(torch.Generator("cpu").manual_seed(0), width, height)[None]
    with peak_of(model.device) as peak:
        model.decode(x, width, height)  # the first one finds its kernels
    began = time.perf_counter()
    model.decode(x, width, height)
    return peak.bytes / (width * height), (time.perf_counter() - began) / (width * height)


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
    """A forward with random input at the native size, or at one with sides so much smaller."""

    def __init__(self, model: DiffusionModel[Any], shrunk: int = 1) -> None:
        self._model = model
        self.token_bytes = 0.0  # the most that a forward took so far
        width, height = model.spec.snapped(*(side // shrunk for side in model.spec.native_size))
        self._x = model.noise(torch.Generator("cpu").manual_seed(0), width, height)
        (conditioning,) = model.encode(["a picture"])
        self._context = model.context(
            conditioning, width=width, height=height, guidance=model.spec.guidance, sigmas=[1.0]
        )
        self.tokens = self._context.image_tokens + self._context.text_tokens

    def seconds(self, rows: int) -> float:
        """The faster of two forwards after one to warm up; the warm-up alone if it is slow."""
        x = self._x.expand(rows, *self._x.shape).contiguous()
        with peak_of(self._model.device) as peak:
            first = self._timed(x, rows)
        self.token_bytes = max(self.token_bytes, peak.bytes / (rows * self.tokens))
        return first if first > PATIENCE_S / 3 else min(self._timed(x, rows) for _ in range(2))

    def _timed(self, x: torch.Tensor, rows: int) -> float:
        began = time.perf_counter()
        velocity = self._model.evaluate(x, [1.0] * rows, [self._context] * rows)
        velocity[0, 0, 0].item()  # wait for the device
        return time.perf_counter() - began
