"""A batch with different LoRAs in one forward, against the same batch without.

    python -m bench.loras [--rounds 9] [--rows 8] [--sets 4] [--rank 8] [--lokr 8]

Prints the least seconds of one evaluation of the embedded model among rounds taken in turn: without
LoRA; every row with one and the same; the rows with so many different ones, in turn; and the same a
forward each, as who merges them must. Each LoRA is random, beside every projection of every block;
with --lokr it is a Kronecker product of whole matrices, the left one of so many squared. On a CPU
the seconds are the processor's, so that neighbours count little. The ratio is of throughput,
against the batch without.
"""

import argparse
import time
from collections.abc import Sequence

import torch

from fluxline.engine import keep_memory
from fluxline.engine.build import open_model
from fluxline.linear.lora import Adapter, AdapterBank, Mix
from fluxline.models.base import DiffusionModel
from fluxline.models.flux1.model import FluxContext
from fluxline.ops.adapter import Kronecker, Learned

SIGMA = 0.7


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    keep_memory()
    model = open_model("mini", options.device)
    bank = AdapterBank(model.adaptable)  # type: ignore[attr-defined]  # FLUX.1 is adaptable
    loras = [_random(model, options.rank, options.lokr, k) for k in range(options.sets)]
    mixes = [((loras[row % options.sets], 1.0),) for row in range(options.rows)]
    ways = {
        "without": [[()] * options.rows],
        "one and the same": [[mixes[0]] * options.rows],
        f"{options.sets} sets in one forward": [mixes],
        f"{options.sets} sets, a forward each": [
            mixes[first :: options.sets] for first in range(options.sets)
        ],
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(options.rounds + 1):  # the first is a warm-up
        for name, forwards in ways.items():
            took = sum(_timed(model, bank, rows) for rows in forwards)
            if i:
                rounds[name].append(took)
    usual = min(rounds["without"])
    for name, times in rounds.items():
        took = min(times)
        print(f"{name:28} {1000 * took:8.1f} ms   {usual / took:.2f} of the throughput")


def _random(
    model: DiffusionModel[FluxContext], rank: int, factor: int | None, seed: int
) -> Adapter:
    """A LoRA, or a LoKr of this factor, beside every projection of every block."""
    g = torch.Generator().manual_seed(seed)
    there = {"device": model.device, "dtype": model.dtype}
    parts: dict[str, list[Learned]] = {}
    for name, module in model.adaptable["transformer"].named_modules():  # type: ignore[attr-defined]
        if "_blocks." in name and hasattr(module, "in_features"):
            columns, rows = module.in_features, module.out_features
            if factor is None:
                down = torch.randn(rank, columns, generator=g) / columns**0.5
                up = 0.1 * torch.randn(rows, rank, generator=g)
                learned: Learned = (0, down.to(**there), up.to(**there))
            else:
                left = torch.randn(factor, factor, generator=g) / factor
                right = 0.1 * torch.randn(rows // factor, columns // factor, generator=g)
                learned = Kronecker((left.to(**there),), (right.to(**there),), (((0, rows), 0),))
            parts[f"transformer.{name}"] = [learned]
    return Adapter(digest=f"{seed}", parts=parts, stages=frozenset({"evaluate"}))


@torch.inference_mode()
def _timed(model: DiffusionModel[FluxContext], bank: AdapterBank, mixes: Sequence[Mix]) -> float:
    """Seconds of one evaluation of so many rows."""
    width, height = model.spec.native_size
    [conditioning] = model.encode(["a fox"])
    context = model.context(
        conditioning, width=width, height=height, guidance=model.spec.guidance, sigmas=[SIGMA]
    )
    x = torch.randn(len(mixes), context.image_tokens, 64, device=model.device)
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    _wait(model.device)
    began = clock()
    with bank.rows(mixes):
        model.evaluate(x, [SIGMA] * len(mixes), [context] * len(mixes))
    _wait(model.device)
    return clock() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lokr", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
