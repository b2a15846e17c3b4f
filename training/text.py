"""The two text encoders: their tokenizers, their making, their pretraining.

Pretraining regresses a caption onto what the picture shows: which thing, style, background, colour
and place, and the principal components of the thing's latents. Thus the transformer starts with
encoders that already tell the things apart.

    python -m training.text --data DIR --out DIR --recipe cpu --minutes 5
"""

from __future__ import annotations

import argparse
import json
import string
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from training import code
from training.captions import caption
from training.compose import Composer
from training.faces import FACES, LOOKS
from training.recipe import CLIP_LENGTH, RECIPES, T5_LENGTH, TEXT_WIDTH, Recipe
from training.scenes import DEFAULT_STYLE, Figure, Scene, Stock, is_held_out, random_scene
from training.things import BACKGROUND_NAMES, COLOUR_NAMES, PLACE_NAMES

COMPONENTS = 128
_CORPUS = 30_000


def corpus(stock: Stock, seed: int = 0) -> list[str]:
    """Training captions to count words in."""
    rng = np.random.default_rng(seed)
    return [
        caption(random_scene(rng, stock), rng, stock).replace(",", " ,") for _ in range(_CORPUS)
    ]


def t5_tokenizer(texts: list[str]) -> T5Tokenizer:
    """Whole words by frequency; letters and parts of words for what is unknown."""
    words = Counter(w for text in texts for w in text.split())
    known = [(w, n) for w, n in words.most_common() if n >= 8]
    total = sum(n for _, n in known)
    parts = Counter(w[i : i + n] for w, _ in known for n in (2, 3) for i in range(len(w) - n + 1))
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -30.0)]
    vocab += [(f"\u2581{w}", float(np.log(n / total))) for w, n in known]
    vocab += [(p, -14.0) for p, n in parts.most_common(400) if n >= 3 and p.isalpha()]
    taken = {piece for piece, _ in vocab}
    singles = ["\u2581", *string.ascii_lowercase, *string.digits]
    vocab += [(s, -16.0) for s in (*singles, *".,;:!?'\"-()&/") if s not in taken]
    taken = {piece for piece, _ in vocab}
    for piece, score in vocab[3:].copy():
        bare = piece.removeprefix("\u2581")
        for variant in dict.fromkeys((bare.capitalize(), bare.upper())):
            if piece != bare and "\u2581" + variant not in taken:
                vocab.append(("\u2581" + variant, score))
    vocab += [(letter, -16.0) for letter in string.ascii_uppercase]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=T5_LENGTH)


def tie_capitals(encoders: Encoders) -> None:
    """Give every capitalised T5 piece the embedding of its lower-case twin.

    Captions are lower case in training, and the stock T5Tokenizer cannot be told to lower-case.
    """
    ids = encoders.t5_words.get_vocab()
    with torch.no_grad():
        table = encoders.t5.get_input_embeddings().weight
        for piece, index in ids.items():
            twin = ids.get(piece.lower())
            if twin is not None and twin != index:
                table[index] = table[twin]


def clip_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """Byte-pair encoding whose merges reach every common whole word."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=8, initial_alphabet=letters, end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    merges = _merges(bpe)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: k for k, piece in enumerate(pieces)},
        merges=merges,
        model_max_length=CLIP_LENGTH,
    )


class Encoders(nn.Module):
    """Both encoders with their tokenizers: captions in, what FLUX is conditioned on out."""

    def __init__(self, t5_words: T5Tokenizer, clip_words: CLIPTokenizer) -> None:
        super().__init__()
        self.t5_words, self.clip_words = t5_words, clip_words
        self.t5 = T5EncoderModel(t5_config(len(t5_words)))
        self.clip = CLIPTextModel(clip_config(clip_words))

    def tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the texts as T5 ids `(B, 24)` and CLIP ids `(B, 32)`, padded."""
        device = next(self.t5.parameters()).device
        kinds = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        long = self.t5_words(texts, max_length=T5_LENGTH, **kinds).input_ids
        short = self.clip_words(texts, max_length=CLIP_LENGTH, **kinds).input_ids
        return long.to(device), short.to(device)

    def twin(self) -> Encoders:
        """Untrained encoders of the same words."""
        return Encoders(self.t5_words, self.clip_words)

    def forward(self, long: torch.Tensor, short: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T5 states `(B, 24, 192)` and CLIP's pooled vector `(B, 192)`, unmasked."""
        return self.t5(long).last_hidden_state, self.clip(short).pooler_output


def t5_config(vocab: int) -> T5Config:
    """Two layers of 192, as the embedded model has them."""
    return T5Config(
        vocab_size=vocab, d_model=TEXT_WIDTH, d_kv=32, num_heads=6, d_ff=512, num_layers=2,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False,
        pad_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip


def clip_config(words: CLIPTokenizer) -> CLIPTextConfig:
    """Two causal layers of 192; the pooled vector is the state of the first end token."""
    return CLIPTextConfig(
        vocab_size=len(words), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=6, max_position_embeddings=CLIP_LENGTH,
        projection_dim=TEXT_WIDTH, hidden_act="quick_gelu", bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip


def build(stock: Stock, seed: int = 0) -> Encoders:
    """Untrained encoders; the tokenizers depend on the recipe and the seed alone."""
    texts = corpus(stock, seed)
    torch.manual_seed(seed)
    return Encoders(t5_tokenizer(texts), clip_tokenizer(texts))


def save(encoders: Encoders, run: Path) -> None:
    """Write the tokenizers and the weights of a run's encoders."""
    encoders.clip_words.save_pretrained(run / "tokenizer")
    encoders.t5_words.save_pretrained(run / "tokenizer_2")
    torch.save(encoders.state_dict(), run / "text.pt")


def load(run: Path) -> Encoders:
    """Read what `save` wrote."""
    encoders = untrained(run)
    encoders.load_state_dict(torch.load(run / "text.pt", weights_only=True))
    return encoders.eval()


def untrained(folder: Path) -> Encoders:
    """Fresh encoders for the tokenizers of a run, or of a diffusers folder."""
    return Encoders(
        T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
    )


def picture_codes(composer: Composer, latent_code: code.Code) -> torch.Tensor:
    """Principal components `(N, S, 128)` of every thing's latents on gray, of unit variance."""
    recipe = composer.stock.recipe
    grid = np.ndindex(recipe.things, recipe.styles)
    scenes = [Scene(figures=(Figure(thing=t, style=s),), background=2) for t, s in grid]
    flat = latent_code.encode(composer.draw(scenes, (128, 128), None)).flatten(1)
    seen = torch.tensor([not is_held_out(s) for s in scenes])
    flat = flat - flat[seen].mean(0)
    _, _, axes = torch.linalg.svd(flat[seen], full_matrices=False)
    scores = flat @ axes[:COMPONENTS].T
    scores = scores / scores[seen].std(0)
    return scores.view(recipe.things, recipe.styles, COMPONENTS)


class Heads(nn.Module):
    """Read from an encoder what a caption tells; used in pretraining only."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.sizes = {
            "thing": recipe.things,
            "other": recipe.things,
            "style": recipe.styles,
            "background": len(BACKGROUND_NAMES),
            "colour": len(COLOUR_NAMES),
            "place": len(PLACE_NAMES),
            "relation": 2,
            **{name: len(words) for name, words in LOOKS.items()},
            "picture": COMPONENTS,
        }
        self.linear = nn.Linear(TEXT_WIDTH, sum(self.sizes.values()))

    def loss(self, state: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss over the captions; what a caption does not tell (-1) is not asked."""
        parts = self.linear(state).split(list(self.sizes.values()), -1)
        total = state.new_zeros(())
        for (name, _), read in zip(self.sizes.items(), parts, strict=True):
            label = labels[name]
            if name == "picture":
                is_thing = labels["thing"] >= 0
                total = total + 0.5 * F.mse_loss(read[is_thing], label[is_thing])
            elif (label >= 0).any():
                asked = F.cross_entropy(read, label, ignore_index=-1)
                total = total + (1.0 if name == "thing" else 0.5) * asked
        return total


def labels_of(scenes: list[Scene], codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a batch of captions tells; -1 where it does not."""
    first = [s.figures[0] if s.figures else _NOTHING for s in scenes]
    relations = {None: -1, "left": 0, "above": 1}
    told = {
        "thing": [f.thing for f in first],
        "other": [s.figures[1].thing if len(s.figures) == 2 else -1 for s in scenes],
        "style": [f.style if s.says_style else -1 for f, s in zip(first, scenes, strict=True)],
        "background": [s.background if s.says_background else -1 for s in scenes],
        "colour": [-1 if f.colour is None else f.colour for f in first],
        "place": [-1 if s.place is None else s.place for s in scenes],
        "relation": [relations[s.relation] for s in scenes],
        **{name: [_look(s, name) for s in scenes] for name in LOOKS},
    }
    shown = [f.style if s.says_style else DEFAULT_STYLE for f, s in zip(first, scenes, strict=True)]
    return {
        **{name: torch.tensor(values) for name, values in told.items()},
        "picture": codes[[f.thing for f in first], shown],
    }


_NOTHING = Figure(thing=-1, style=-1)


def _look(scene: Scene, name: str) -> int:
    if scene.face is None or name not in scene.says_looks:
        return -1
    return LOOKS[name].index(FACES[scene.face][name])


def pretrain(
    encoders: Encoders,
    stock: Stock,
    codes: torch.Tensor,
    *,
    minutes: float,
    older: Encoders | None = None,
    older_things: int = 0,
    seed: int = 0,
) -> None:
    """Train the encoders and throw-away heads on captions for so many minutes.

    older: encoders to stay near to where they know what is said: the first older_things.
    """
    rng = np.random.default_rng(seed + 1)
    heads = nn.ModuleList([Heads(stock.recipe), Heads(stock.recipe)])
    parameters = [*encoders.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, step / 100) * (1 - done)
        scenes = [random_scene(rng, stock) for _ in range(64)]
        spoken = [(s, text) for s in scenes if (text := caption(s, rng, stock))]
        texts = [text for _, text in spoken]
        labels = labels_of([s for s, _ in spoken], codes)
        states, pooled = encoders(*encoders.tokens(texts))
        losses = [heads[0].loss(states.mean(1), labels), heads[1].loss(pooled, labels)]
        plain = [k for k, (s, _) in enumerate(spoken) if _is_plain(s, older_things)]
        if older is not None and plain:
            known = [texts[k] for k in plain]
            losses.append(_drift(older, known, states[plain], pooled[plain]))
        optimizer.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            values = " ".join(f"{loss.item():.3f}" for loss in losses)
            print(f"step {step} {60 * minutes * done:.0f} s: t5, clip, drift {values}", flush=True)


def _drift(
    older: Encoders, texts: list[str], states: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """How far answers are from those of older encoders, in units of their variance."""
    with torch.no_grad():
        old_states, old_pooled = older(*older.tokens(texts))
    return (states - old_states).square().mean() / old_states.var() + (
        pooled - old_pooled
    ).square().mean() / old_pooled.var()


def _is_plain(scene: Scene, things: int) -> bool:
    """Whether a run of so many things, one to a picture in its own colour, could say it."""
    if len(scene.figures) != 1 or scene.place is not None:
        return False
    (first,) = scene.figures
    return first.thing < things and first.colour is None


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


def main() -> None:
    """Fit the code when absent, build, pretrain, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    composer = Composer(args.data, RECIPES[args.recipe])
    path = args.out / "code.pt"
    if not path.exists():
        code.save(code.fit(composer), path)
    encoders = build(composer.stock)
    codes = picture_codes(composer, code.load(path))
    pretrain(encoders, composer.stock, codes, minutes=args.minutes)
    save(encoders, args.out)


if __name__ == "__main__":
    main()
