"""FLUX.1 with a fault on one rank, poured in below the engine by `at_start/sitecustomize.py`.

FAULT of the environment names the rank, where and how: `1 forward raise`. Where: load, encode,
forward (in the middle of it) or decode. How: raise, refuse (an error of ours, as for a bad
request), unload (as for a bad model), stall or kill. It happens once, when FAULT_FILE is there, and
takes that away. With a word in the file it stays; prompts without that word are spared.
"""

import os
import signal
import time
from pathlib import Path

from fluxline.errors import EngineError, LoadError
from fluxline.models.flux1 import load as flux1

STALL_S = 10_000.0


def load(path, **options):
    """Open a FLUX.1; on one rank with a fault."""
    rank, where, how = os.environ["FAULT"].split()
    if rank != os.environ.get("RANK", "0"):  # the first is told no number
        return flux1.load(path, **options)
    file = Path(os.environ["FAULT_FILE"])

    def meet(place, prompts=()):
        if place != where or not file.exists():
            return
        if not (word := file.read_text()):
            file.unlink()
        elif prompts and not any(word in prompt for prompt in prompts):
            return
        happen(how)

    meet("load")
    model = flux1.load(path, **options)
    model.transformer.single_blocks[0].register_forward_pre_hook(lambda *_: meet("forward"))
    encode, decode = model.encode, model.decode
    model.encode = lambda prompts: (meet("encode", prompts), encode(prompts))[1]
    model.decode = lambda *given: (meet("decode"), decode(*given))[1]
    return model


def happen(how):
    match how:
        case "raise":
            raise RuntimeError("a fault of the test")
        case "refuse":
            raise EngineError("a fault of the test")
        case "unload":
            raise LoadError("a fault of the test")
        case "stall":
            time.sleep(STALL_S)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
