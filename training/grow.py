"""Go on from a run that knew fewer words: a new vocabulary on what was learned.

The new encoders begin as the old ones, and are held near them for all that those could say, so
that the old transformer still understands them while the new words are learned. Writes everything
that `training.transformer` wants.

    python -m training.grow --data DIR --older RUN --known 122 --out NEW --recipe cpu --minutes 5
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from training import checkpoint, code, text
from training.compose import Composer
from training.recipe import RECIPES


def grown(encoders: text.Encoders, older: text.Encoders) -> text.Encoders:
    """Give encoders what older ones know: all weights, and the vectors of the words in common."""
    for mine, theirs, words, old_words in (
        (encoders.t5, older.t5, encoders.t5_words, older.t5_words),
        (encoders.clip, older.clip, encoders.clip_words, older.clip_words),
    ):
        ids, old_ids = words.get_vocab(), old_words.get_vocab()
        table = mine.get_input_embeddings().weight.detach().clone()
        old_table = theirs.get_input_embeddings().weight
        for piece in ids.keys() & old_ids.keys():
            table[ids[piece]] = old_table[old_ids[piece]]
        state = theirs.state_dict()
        state = {n: v for n, v in state.items() if v.shape[:1] != old_table.shape[:1]}
        mine.load_state_dict(state, strict=False)
        with torch.no_grad():
            mine.get_input_embeddings().weight.copy_(table)
    return encoders


def main() -> None:
    """Read the old run, learn the new words, write the new run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--older", type=Path, required=True)
    parser.add_argument("--known", type=int, required=True, help="things that run knew")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("code.pt", "vae.pt"):
        shutil.copy(args.older / name, args.out / name)
    composer = Composer(args.data, RECIPES[args.recipe])
    learned = checkpoint.read(args.older / "transformer")["average"]
    older = text.untrained(args.older).eval().requires_grad_(False)
    older.load_state_dict(_part(learned, "encoders."))
    encoders = grown(text.build(composer.stock), older)
    text.pretrain(
        encoders,
        composer.stock,
        text.picture_codes(composer, code.load(args.out / "code.pt")),
        minutes=args.minutes,
        older=older,
        older_things=args.known,
    )
    text.save(encoders, args.out)
    average = {f"encoders.{name}": value for name, value in encoders.state_dict().items()}
    average |= {n: v for n, v in learned.items() if n.startswith("transformer.")}
    checkpoint.write(args.out / "transformer", {"average": average})


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


if __name__ == "__main__":
    main()
