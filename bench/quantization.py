"""Every precision on the embedded model: how much memory, how far from full weights, how slow.

    python -m bench.quantization [--prompts 16] [--only nf4,fp8] [--sheet docs/quantization.webp]

Writes its table into docs/quantization.md, and the first pictures of every precision onto a sheet.
Each is held against float32: the weights of the layers that are quantized, the velocity at every
evaluation of the pictures that float32 draws, and pictures of the same prompts and seeds. Seconds
are of CPU, of one thread, so that other work on the machine does not count.
"""

import argparse
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.likeness import psnr
from fluxline.engine import Engine, keep_memory
from fluxline.engine.build import open_model
from fluxline.engine.scheduler import Budget
from fluxline.linear.quantized import KINDS, OWN_KINDS, QuantizedLinear
from fluxline.models.flux.recipe import TRANSFORMER
from fluxline.models.flux1.model import Flux1
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from fluxline.models.registry import entry_for
from tests.models.flux1.gguf_export import WRITABLE, save_as_gguf

DOC = Path("docs/quantization.md")
BEGIN, END = "<!-- table: python -m bench.quantization -->", "<!-- end of table -->"
THINGS = ("fox", "car", "house", "apple", "whale", "cactus", "rocket", "heart")
PROMPTS = [f"a {c} {thing}" for thing in THINGS for c in ("red", "blue", "green", "yellow")]
SHOWN, SHOWN_PX = 8, 96
ALONE = Budget(batch_tokens=1, resident_tokens=1)
DEV = FluxConfig(
    in_channels=64,
    out_channels=64,
    depth_double=19,
    depth_single=38,
    head_dim=128,
    heads=24,
    text_dim=4096,
    pooled_dim=768,
    guidance=True,
    axes=(16, 56, 56),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What was measured of one precision."""

    name: str
    transformer_bytes: int
    dev_bytes: int  # of FLUX.1-dev, by its shapes
    weight_error: float
    velocity_error: float
    psnr: list[float]  # dB, of each picture
    seconds: float
    pictures: list[np.ndarray]


def main() -> None:
    """Measure, print, write."""
    options = _options()
    torch.set_num_threads(1)
    keep_memory()
    prompts = PROMPTS[:: max(1, len(PROMPTS) // options.prompts)][: options.prompts]
    full = open_model("mini", "cpu", "fp32")
    assert isinstance(full, Flux1)
    truth = _drawn(full, prompts)[0]
    path = list(_path(full, prompts))
    lines = []
    for name, model in _models(options.only):
        pictures, seconds = _drawn(model, prompts)
        line = Line(
            name=name,
            transformer_bytes=_bytes(model.transformer),
            dev_bytes=_dev_bytes(name),
            weight_error=_weight_error(full.transformer, model.transformer),
            velocity_error=_velocity_error(model, path),
            psnr=[psnr(one, other) for one, other in zip(pictures, truth, strict=True)],
            seconds=seconds,
            pictures=pictures,
        )
        lines.append(line)
        print(_row(line), flush=True)
    _write(lines, len(prompts))
    if options.sheet:
        _sheet(lines).save(options.sheet, quality=85)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--only", type=lambda text: set(text.split(",")), help="fp32,nf4,…")
    parser.add_argument("--sheet", type=Path, help="picture to write")
    return parser.parse_args()


def _models(only: set[str] | None) -> Iterator[tuple[str, Flux1]]:
    """Every precision there is, and every block type of GGUF that can be written."""
    for name in ("fp32", "bf16", *OWN_KINDS):
        if only is None or name in only:
            yield name, open_model("mini", "cpu", name)  # type: ignore[misc]  # a FLUX.1 it is
    source = Path(entry_for("mini").source)
    with tempfile.TemporaryDirectory() as folder:
        for name in WRITABLE:
            if only is None or name in only:
                target = Path(folder) / name
                shutil.copytree(source, target)
                file = save_as_gguf(source, target / "flux1-mini.gguf", lambda _, kind=name: kind)
                yield name, open_model(str(file), "cpu")  # type: ignore[misc]


def _drawn(model: Flux1, prompts: list[str]) -> tuple[list[np.ndarray], float]:
    """Pictures of the prompts, seeds 0, 1, …; and CPU seconds of one."""
    pictures, took = [], []
    with Engine(model, budget=ALONE, threads=1) as engine:
        engine.generate("warm", steps=1)
        for seed, prompt in enumerate(prompts):
            began = time.process_time()
            (image,) = engine.generate(prompt, seed=seed)
            took.append(time.process_time() - began)
            pictures.append(np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB")))
    return pictures, statistics.median(took)


@dataclass(frozen=True, slots=True)
class _Step:
    """One evaluation of float32: what it was given and what it answered."""

    x: Tensor  # (R, N, C)
    sigma: float
    conditioning: list[object]
    sigmas: list[float]
    velocity: Tensor


def _path(model: Flux1, prompts: list[str]) -> Iterator[_Step]:
    """Evaluations of the pictures that float32 draws, all rows at once; its prompts' encodings too:
    the transformer alone is compared."""
    spec = model.spec
    sigmas = torch.linspace(1, 0, spec.default_steps + 1).tolist()
    width, height = spec.native_size
    conditioning = model.encode(prompts)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    x = torch.stack([model.noise(generator, width, height) for generator in generators])
    for sigma, after in pairwise(sigmas):
        velocity = _velocity(model, x, sigma, conditioning, sigmas[:-1])
        yield _Step(x, sigma, list(conditioning), sigmas[:-1], velocity)
        x = x + (after - sigma) * velocity


def _velocity(
    model: Flux1, x: Tensor, sigma: float, conditioning: list, sigmas: list[float]
) -> Tensor:
    width, height = model.spec.native_size
    contexts = [
        model.context(
            type(one)(one.text.to(model.dtype), one.pooled.to(model.dtype)),
            width=width,
            height=height,
            guidance=model.spec.guidance,
            sigmas=sigmas,
        )
        for one in conditioning
    ]
    return model.evaluate(x, [sigma] * len(x), contexts)


def _velocity_error(model: Flux1, path: list[_Step]) -> float:
    errors = []
    for step in path:
        found = _velocity(model, step.x, step.sigma, step.conditioning, step.sigmas)
        errors.append(float((found - step.velocity).norm() / step.velocity.norm()))
    return statistics.mean(errors)


def _weight_error(full: nn.Module, held: nn.Module) -> float:
    """Mean over the layers that are quantized, or would be."""
    errors = []
    for name, layer in full.named_modules():
        if isinstance(layer, nn.Linear) and any(fnmatchcase(name, p) for p in TRANSFORMER):
            other = held.get_submodule(name)
            is_held = isinstance(other, QuantizedLinear)
            weight = other.dequantized() if is_held else other.weight.float()
            errors.append(float((weight - layer.weight).norm() / layer.weight.norm()))
    return statistics.mean(errors)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _dev_bytes(name: str) -> int:
    """The transformer of FLUX.1-dev held so: its shapes without its weights."""
    with torch.device("meta"):
        model = FluxTransformer(DEV)
    model = model if name == "fp32" else model.bfloat16()
    if name in KINDS:
        for layer, module in list(model.named_modules()):
            if any(fnmatchcase(layer, pattern) for pattern in TRANSFORMER):
                model.set_submodule(layer, QuantizedLinear(KINDS[name], module))
    return _bytes(model)


HEAD = (
    "| precision | transformer of mini, MB | of FLUX.1-dev, GB | error of weights | of velocity "
    "| pictures, dB: median (worst) | CPU s a picture |\n"
    "|---|---|---|---|---|---|---|"
)


def _row(line: Line) -> str:
    cells = (
        f"`{line.name}`",
        f"{line.transformer_bytes / 1e6:.1f}",
        f"{line.dev_bytes / 1e9:.1f}",
        f"{100 * line.weight_error:.2f} %",
        f"{100 * line.velocity_error:.2f} %",
        f"{statistics.median(line.psnr):.1f} ({min(line.psnr):.1f})",
        f"{line.seconds:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _write(lines: list[Line], prompts: int) -> None:
    text = DOC.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    capability = torch.backends.cpu.get_cpu_capability()
    when = f"{prompts} pictures a line, {time.strftime('%Y-%m')}, torch {torch.__version__}, "
    caption = f"{when}a CPU with {capability}, one thread."
    table = "\n".join((HEAD, *map(_row, lines)))
    DOC.write_text(f"{before}{BEGIN}\n{table}\n\n{caption}\n{END}{after}", "utf-8")


def _sheet(lines: list[Line]) -> Image.Image:
    """A row for each precision, in the order of the table."""
    size = (SHOWN * SHOWN_PX, len(lines) * SHOWN_PX)
    sheet = Image.new("RGB", size)
    for row, line in enumerate(lines):
        for column, picture in enumerate(line.pictures[:SHOWN]):
            small = Image.fromarray(picture).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * SHOWN_PX, row * SHOWN_PX))
    return sheet


if __name__ == "__main__":
    main()
