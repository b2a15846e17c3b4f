"""What a picture's file says of how its bytes came to be."""

from typing import Any

import torch

from fluxline.engine.job import Job
from fluxline.engine.sigmas import sigmas_of
from fluxline.images import Receipt
from fluxline.models.base import DiffusionModel


def receipt_of(job: Job, model: DiffusionModel[Any], *, threads: int, parallel: str) -> Receipt:
    """Write the receipt of a job drawn by `model` with so many CPU threads, on such ranks."""
    dtype = str(model.dtype).removeprefix("torch.")
    return Receipt(
        weights=model.weights,
        backend=model.spec.backend,
        sigmas=tuple(sigmas_of(job, model.spec)),
        dtype=dtype,
        precision=model.spec.info(device="", dtype=dtype).precision,
        device=_described(model.device),
        torch=str(torch.__version__),
        threads=threads,
        beside=job.beside,
        parallel=parallel,
        loras=tuple(adapter.digest for adapter, _ in job.mix),
    )


def _described(device: torch.device) -> str:
    """The device, by what its rounding depends on."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return device.type
