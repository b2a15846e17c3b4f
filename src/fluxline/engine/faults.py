"""What an exception from the device means: too little memory, or no device any more."""

import torch


def is_out_of_memory(exc: Exception) -> bool:
    """Whether memory ran out; on a CPU and on Apple's GPUs torch says so in words alone."""
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(exc, RuntimeError) and any(w in str(exc) for w in words)


def is_lost(device: torch.device) -> bool:
    """Whether a CUDA context is beyond use, as after an illegal access: nothing on it works."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
