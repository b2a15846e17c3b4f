"""The embedded model: Fluxline against diffusers' FluxPipeline, same weights, same run, in turn.

    python -m bench.embedded [--rounds 7] [--steps 4]

Prints the median seconds of one picture and of sixteen in flight, PNG included on both sides, the
ratios, the share of the machine's own float32 matmul rate that each reaches inside the
transformer, and what the engine costs outside the model. diffusers gets the faster of one and all
threads, its progress bar off, and for the sixteen the faster of one by one and one batch.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from torch.utils.flop_counter import FlopCounterMode

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.ticket import new_request
from fluxline.engine.tune import tune
from fluxline.models.registry import entry_for

PROMPTS = [f"a {c} {t}" for c in ("red", "blue", "green", "yellow")
           for t in ("fox", "car", "house", "apple")]  # fmt: skip


def main() -> None:
    """Measure and print."""
    options = _options()
    peer = _Diffusers(Path(entry_for("mini").source), options.steps)
    model = open_model("mini", "cpu")
    steps = options.steps or model.spec.default_steps
    ours_threads = tune(model).threads  # the engine's thread sets its own; ours cannot see it
    clock = _Clock(model)
    with Engine(model) as engine:
        one = lambda i: engine.generate(PROMPTS[i % 16], seed=i, steps=steps)  # noqa: E731
        rounds: dict[str, list[float]] = {}
        peer.choose_threads()
        for i in range(options.rounds + 1):  # the first is a warm-up
            for name, act in (
                ("ours, one", lambda i=i: one(i)),
                ("diffusers, one", lambda i=i: peer.one(i, steps)),
                ("ours, sixteen", lambda i=i: _together(engine, i, steps)),
                ("diffusers, sixteen in turn", lambda i=i: peer.sixteen_in_turn(i, steps)),
                ("diffusers, sixteen batched", lambda i=i: peer.sixteen_batched(i, steps)),
            ):
                torch.set_num_threads(peer.threads if "diffusers" in name else ours_threads)
                inside = clock.seconds
                took = _seconds(act)
                if i:
                    rounds.setdefault(name, []).append(took)
                    if "ours" in name:
                        outside = 1 - (clock.seconds - inside) / took
                        rounds.setdefault(f"{name}: outside the model", []).append(outside)
    _report(rounds, steps, ours_threads, peer.threads)
    _report_rates(model, peer, ours_threads)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=None)
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


class _Diffusers:
    """The peer, at its best on this machine."""

    def __init__(self, folder: Path, steps: int | None) -> None:
        self.pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.threads = 1
        self.text_length = open_model("mini", "cpu").spec.text_length

    def choose_threads(self) -> None:
        """Take the faster of one and all threads for one picture."""
        took = {}
        for threads in (1, os.cpu_count() or 1):
            torch.set_num_threads(threads)
            self.one(0, 4)
            took[threads] = min(_seconds(lambda: self.one(0, 4)) for _ in range(3))
        self.threads = min(took, key=took.__getitem__)

    def one(self, i: int, steps: int) -> None:
        self._draw([PROMPTS[i % 16]], [i], steps)

    def sixteen_in_turn(self, i: int, steps: int) -> None:
        for k, prompt in enumerate(PROMPTS):
            self._draw([f"{prompt} {i}"], [k], steps)

    def sixteen_batched(self, i: int, steps: int) -> None:
        self._draw([f"{prompt} {i}" for prompt in PROMPTS], list(range(16)), steps)

    def forward(self, x: torch.Tensor) -> object:
        """One forward of its transformer."""
        rows, config = len(x), self.pipe.transformer.config
        return self.pipe.transformer(
            hidden_states=x,
            encoder_hidden_states=torch.zeros(rows, self.text_length, config.joint_attention_dim),
            pooled_projections=torch.zeros(rows, config.pooled_projection_dim),
            timestep=torch.ones(rows),
            img_ids=self.pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32),
            txt_ids=torch.zeros(self.text_length, 3),
            return_dict=False,
        )

    def _draw(self, prompts: list[str], seeds: list[int], steps: int) -> None:
        pictures = self.pipe(
            prompts,
            num_inference_steps=steps,
            width=128,
            height=128,
            max_sequence_length=self.text_length,
            generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
        ).images
        for picture in pictures:
            picture.save(io.BytesIO(), "PNG")


def _together(engine: Engine, i: int, steps: int) -> None:
    requests = [
        new_request(f"{prompt} {i}", seed=k, params={"steps": steps})
        for k, prompt in enumerate(PROMPTS)
    ]
    for ticket in [engine.submit(request) for request in requests]:
        ticket.result()


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


@torch.inference_mode()
def _report_rates(model: Any, peer: _Diffusers, threads: int) -> None:
    """Share of the matmul rate inside one transformer forward, one row and sixteen."""
    torch.set_num_threads(threads)
    (conditioning,) = model.encode(["a red fox"])
    context = model.context(conditioning, width=128, height=128, guidance=None, sigmas=[1.0])
    for rows in (1, 16):
        x = torch.randn(rows, model.spec.image_tokens(128, 128), 64)
        acts = {
            "ours": partial(model.evaluate, x, [1.0] * rows, [context] * rows),
            "diffusers": partial(peer.forward, x),
            "matmul": partial(_matmuls, rows * (x.shape[1] + model.spec.text_length), model),
        }
        for act in acts.values():
            act()
        took: dict[str, list[float]] = {name: [] for name in acts}
        for _ in range(15):
            for name, act in acts.items():
                took[name].append(_seconds(act))
        median = {name: statistics.median(values) for name, values in took.items()}
        rate = _flops(acts["matmul"]) / median["matmul"]
        flops = _flops(acts["ours"])
        print(
            f"  forward of {rows:2} rows: {flops / 1e9:.2f} GFLOP; "
            f"ours {1000 * median['ours']:.1f} ms, diffusers {1000 * median['diffusers']:.1f} ms; "
            f"matmul rate {rate / 1e9:.0f} GFLOP/s; "
            f"share: ours {100 * flops / median['ours'] / rate:.0f} %, "
            f"diffusers {100 * flops / median['diffusers'] / rate:.0f} %"
        )


def _matmuls(tokens: int, model: Any) -> list[torch.Tensor]:
    """Products of the forward's own size: what the machine can do at best."""
    width = model.transformer.config.hidden
    x, weight = torch.ones(tokens, width), torch.ones(width, 4 * width)
    return [x @ weight for _ in range(10)]


def _flops(act: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
