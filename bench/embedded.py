"""The embedded model: Fluxline against diffusers' FluxPipeline, same weights, same run, in turn.

    python -m bench.embedded [--rounds 7] [--steps 4]

Prints the median seconds of one picture and of sixteen in flight, PNG included on both sides, the
ratios, the share of the machine's own float32 matmul rate that each reaches inside the
transformer, and what the engine costs outside the model. diffusers gets the faster of one and all
threads, its progress bar off, and for the sixteen the faster of one by one and one batch. Each side
has a process of its own and the other waits: in one process, the threads of one linger in the way
of the other's.
"""

import argparse
import io
import json
import multiprocessing
import os
import queue
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from torch.utils.flop_counter import FlopCounterMode

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.ticket import new_request
from fluxline.engine.tune import keep_memory
from fluxline.models.registry import entry_for
from fluxline.request import GenerationRequest

PROMPTS = [f"a {c} {t}" for c in ("red", "blue", "green", "yellow")
           for t in ("fox", "car", "house", "apple")]  # fmt: skip


def main() -> None:
    """Measure and print."""
    options = _options()
    ours, peer = _Beside(_Ours, options.steps), _Beside(_Diffusers, options.steps)
    rounds: dict[str, list[float]] = {}
    for i in range(options.rounds + 1):  # the first is a warm-up
        for name, side, act in (
            ("ours, one", ours, "one"),
            ("diffusers, one", peer, "one"),
            ("ours, sixteen", ours, "sixteen"),
            ("diffusers, sixteen in turn", peer, "sixteen_in_turn"),
            ("diffusers, sixteen batched", peer, "sixteen_batched"),
        ):
            times = 3 if act == "one" else 1  # the first picture after a pause finds cold caches
            took, outside = sorted(side.ask(act, times * i + k) for k in range(times))[times // 2]
            if i:
                rounds.setdefault(name, []).append(took)
                if side is ours:
                    rounds.setdefault(f"{name}: outside the model", []).append(outside)
    _report(rounds, options.steps, ours.ask("threads_used"), peer.ask("threads_used"))
    _report_rates(ours, peer)
    ours.end(), peer.end()


class _Beside:
    """One side of the comparison in a process of its own."""

    def __init__(self, side: Callable[[int], object], steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, side, steps), daemon=True)
        self._process.start()
        self._pipe.recv()  # it is ready: nobody chooses threads while the other loads

    def ask(self, method: str, *args: object) -> Any:
        """Call a method over there and wait for its answer."""
        self._pipe.send((method, args))
        return self._pipe.recv()

    def end(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, make: Callable[[int], object], steps: int) -> None:
    side = make(steps)
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        method, args = asked
        pipe.send(getattr(side, method)(*args))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()


class _Clock:
    """Counts the seconds spent inside the model's own verbs."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        for verb in ("encode", "context", "evaluate", "decode", "noise"):
            setattr(model, verb, self._timed(getattr(model, verb)))

    def _timed(self, act: Callable[..., object]) -> Callable[..., object]:
        def timed(*args: object, **rest: object) -> object:
            began = time.perf_counter()
            try:
                return act(*args, **rest)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


class _Ours:
    """Fluxline's engine as a program holds it."""

    def __init__(self, steps: int) -> None:
        keep_memory()
        self._steps = steps
        self._model = open_model("mini", "cpu")
        self._clock = _Clock(self._model)
        self._engine = Engine(self._model)

    def threads_used(self) -> int:
        """CPU threads of a forward: what torch says on the engine's own thread."""
        said: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._engine._inbox.put(lambda: said.put(torch.get_num_threads()))
        return said.get()

    def one(self, i: int) -> tuple[float, float]:
        """Seconds of one picture, and the share of them spent outside the model."""
        return self._timed([new_request(PROMPTS[i % 16], seed=i, params={"steps": self._steps})])

    def sixteen(self, i: int) -> tuple[float, float]:
        """The same of sixteen requests sent at once."""
        params = {"steps": self._steps}
        return self._timed(
            [new_request(f"{p} {i}", seed=k, params=params) for k, p in enumerate(PROMPTS)]
        )

    def rate(self, rows: int) -> tuple[float, float, float]:
        """GFLOP of a forward of rows, its seconds, and the GFLOP/s of a product of its size."""
        torch.set_num_threads(self.threads_used())
        spec, transformer = self._model.spec, self._model.transformer
        (conditioning,) = self._model.encode(["a red fox"])
        width, height = spec.native_size
        context = self._model.context(
            conditioning, width=width, height=height, guidance=spec.guidance, sigmas=[1.0]
        )
        noise = self._model.noise(torch.Generator().manual_seed(0), width, height)
        x = noise.expand(rows, -1, -1).contiguous()
        act = partial(self._model.evaluate, x, [1.0] * rows, [context] * rows)
        with FlopCounterMode(display=False) as counter:
            act()
        hidden = transformer.config.hidden
        tokens = rows * (context.image_tokens + context.text_tokens)
        a, b = torch.randn(tokens, hidden), torch.randn(hidden, 4 * hidden)
        product = 2 * tokens * hidden * 4 * hidden
        return counter.get_total_flops() / 1e9, _median(act), product / _median(lambda: a @ b) / 1e9

    def _timed(self, requests: list[GenerationRequest]) -> tuple[float, float]:
        inside = self._clock.seconds
        took = _seconds(lambda: [t.result() for t in [self._engine.submit(r) for r in requests]])
        return took, 1 - (self._clock.seconds - inside) / took


class _Diffusers:
    """The peer, at its best on this machine."""

    def __init__(self, steps: int) -> None:
        folder = Path(entry_for("mini").source)
        self.pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self._steps = steps
        self.text_length = json.loads((folder / "fluxline.json").read_text())["text_length"]
        took = {}
        for threads in (1, os.cpu_count() or 1):
            torch.set_num_threads(threads)
            self.one(0)
            took[threads] = min(self.one(0)[0] for _ in range(3))
        torch.set_num_threads(min(took, key=took.__getitem__))

    def threads_used(self) -> int:
        """The faster of one and all for one picture."""
        return torch.get_num_threads()

    def one(self, i: int) -> tuple[float, float]:
        """Seconds of one picture."""
        return _seconds(lambda: self._draw([PROMPTS[i % 16]], [i])), 0.0

    def sixteen_in_turn(self, i: int) -> tuple[float, float]:
        """Seconds of sixteen pictures, one by one."""
        prompts = [f"{prompt} {i}" for prompt in PROMPTS]
        return _seconds(lambda: [self._draw([p], [k]) for k, p in enumerate(prompts)]), 0.0

    def sixteen_batched(self, i: int) -> tuple[float, float]:
        """Seconds of sixteen pictures in one batch, all known beforehand."""
        prompts = [f"{prompt} {i}" for prompt in PROMPTS]
        return _seconds(lambda: self._draw(prompts, list(range(16)))), 0.0

    @torch.inference_mode()
    def rate(self, rows: int) -> float:
        """Seconds of one forward."""
        x = torch.randn(rows, 64, self.pipe.transformer.config.in_channels)
        return _median(lambda: self.forward(x))

    def forward(self, x: torch.Tensor) -> object:
        """One forward of its transformer."""
        rows, config = len(x), self.pipe.transformer.config
        return self.pipe.transformer(
            hidden_states=x,
            encoder_hidden_states=torch.zeros(rows, self.text_length, config.joint_attention_dim),
            pooled_projections=torch.zeros(rows, config.pooled_projection_dim),
            timestep=torch.ones(rows),
            guidance=torch.ones(rows) if config.guidance_embeds else None,
            img_ids=self.pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32),
            txt_ids=torch.zeros(self.text_length, 3),
            return_dict=False,
        )

    def _draw(self, prompts: list[str], seeds: list[int]) -> None:
        pictures = self.pipe(
            prompts,
            num_inference_steps=self._steps,
            width=128,
            height=128,
            max_sequence_length=self.text_length,
            generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
        ).images
        for picture in pictures:
            picture.save(io.BytesIO(), "PNG")


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _report(rounds: dict[str, list[float]], steps: int, ours: int, theirs: int) -> None:
    median = {name: statistics.median(values) for name, values in rounds.items()}
    print(f"{steps} evaluations, 128x128; threads: ours {ours}, diffusers {theirs}")
    for name, value in median.items():
        shown = f"{100 * value:5.1f} %" if "outside" in name else f"{1000 * value:7.1f} ms"
        print(f"  {name:36} {shown}")
    batched = min(median["diffusers, sixteen in turn"], median["diffusers, sixteen batched"])
    print(f"  ratio, one                {median['diffusers, one'] / median['ours, one']:.2f}x")
    turn = median["diffusers, sixteen in turn"] / median["ours, sixteen"]
    print(f"  ratio, sixteen            {turn:.2f}x (diffusers in turn)")
    print(f"  ratio, sixteen            {batched / median['ours, sixteen']:.2f}x (diffusers' best)")


def _report_rates(ours: _Beside, peer: _Beside) -> None:
    """Share of the matmul rate inside one transformer forward, one row and sixteen."""
    for rows in (1, 16):
        turns = [(*ours.ask("rate", rows), peer.ask("rate", rows)) for _ in range(5)]
        gflop, ours_s, rate, peer_s = (
            statistics.median(column) for column in zip(*turns, strict=True)
        )
        print(
            f"  forward of {rows:2} rows: {gflop:.2f} GFLOP; "
            f"ours {1000 * ours_s:.1f} ms, diffusers {1000 * peer_s:.1f} ms; "
            f"matmul rate {rate:.0f} GFLOP/s; "
            f"share: ours {100 * gflop / ours_s / rate:.0f} %, "
            f"diffusers {100 * gflop / peer_s / rate:.0f} %"
        )


def _median(act: Callable[[], object]) -> float:
    """Seconds of the middle one of nine, after one to warm up."""
    act()
    return statistics.median(_seconds(act) for _ in range(9))


if __name__ == "__main__":
    main()
