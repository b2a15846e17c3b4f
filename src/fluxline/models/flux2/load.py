"""Open a FLUX.2 from disk: diffusers' folder layout, or a single file of BFL's names inside one.

Reads configurations and says which parts a folder lacks; tensors are streamed by whoever is passed
in as `checkpoint_at`, into layers that hold them as `precision` says. A model may say more of
itself in a `fluxline.json`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from fluxline.errors import ConfigError, LoadError
from fluxline.models.base import Checkpoint, Held, Part, Precision, Share, whole
from fluxline.models.flux.names import is_bfl
from fluxline.models.flux.parts import checkpoint_of, fill_share, folder_of, note_held, vae_of
from fluxline.models.flux.recipe import TRANSFORMER
from fluxline.models.flux.seams import seams
from fluxline.models.flux2 import recipe
from fluxline.models.flux2.latents import PATCH
from fluxline.models.flux2.model import Flux2
from fluxline.models.flux2.names import layout_for
from fluxline.models.flux2.text import DEV, KLEIN, Chat, TextEncoder, cut
from fluxline.models.flux2.transformer import Flux2Config, Flux2Transformer
from fluxline.models.folder import (
    LOCAL,
    config_of,
    fingerprint_of,
    read_json,
    reading,
    require_parts,
    said_of_itself,
)
from fluxline.models.spec import EmpiricalShift, ModelSpec, References

PARTS = ("text_encoder", "vae", "tokenizer", "scheduler")
SINGLE_FILES = tuple(
    f"{name}-*.{ending}" for ending in ("safetensors", "gguf") for name in ("flux2", "flux-2")
)
READERS: dict[str, tuple[Any, Chat]] = {  # by the model_type of their configuration
    "qwen3": (Qwen3ForCausalLM, KLEIN),
    "mistral3": (Mistral3ForConditionalGeneration, DEV),
}
GUIDANCE = 4.0  # of dev an input, of a base model true
MOST_REFERENCES = 10  # what BFL says of dev


def load(
    path: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint_at: Callable[[Path], Checkpoint],
    precision: Precision,
    share: Share = whole,
) -> Flux2:
    """Open the model at `path`, a folder or a single .safetensors or .gguf file inside one.

    share: of the transformer. Raises LoadError: a part is missing, a config is wrong, or tensors
    do not fit.
    """
    folder = folder_of(path)
    require_parts(folder, PARTS, name=name)
    config, of_transformer = transformer_part(path, checkpoint_at)
    with torch.device("meta"):
        network = Flux2Transformer(config).to(dtype)
    transformer, held = fill_share(network, of_transformer, device, precision, share)
    of_vae = checkpoint_of(folder, "vae", checkpoint_at)
    vae = vae_of(AutoencoderKLFlux2, folder, device, dtype)
    index = folder / "model_index.json"
    said = read_json(index) if index.exists() else {}
    remembers = said.get("_class_name") == "Flux2KleinKVPipeline"
    is_distilled = remembers or bool(said.get("is_distilled", False))
    spec = _spec(name, folder, config, vae.config, is_distilled=is_distilled, remembers=remembers)
    of_text = text_part(path, checkpoint_at)
    text, text_held = _text(folder, of_text, spec.text_length, device, dtype, precision)
    _check_widths(name, config, text, vae)
    return Flux2(
        note_held(spec, held, text_held, of_text),
        transformer=transformer,
        text=text,
        vae=vae,
        weights=fingerprint_of(of_transformer.checkpoint, of_text.checkpoint, of_vae),
        remembers=remembers,
    )


def parts(path: Path, checkpoint_at: Callable[[Path], Checkpoint]) -> tuple[Part, ...]:
    """The parts of the model at `path` whose layers may be held in fewer bits. Raises LoadError."""
    return transformer_part(path, checkpoint_at)[1], text_part(path, checkpoint_at)


def transformer_part(
    path: Path, checkpoint_at: Callable[[Path], Checkpoint]
) -> tuple[Flux2Config, Part]:
    """The transformer of the model at `path`, read no further than its names and shapes."""
    checkpoint = checkpoint_at(weights := _weights(path))
    names = list(checkpoint.shapes)
    if is_bfl(names):
        config = config_from_shapes(checkpoint.shapes)
    else:
        about = weights if weights.is_dir() else folder_of(path) / "transformer"
        config = config_from_json(read_json(about / "config.json"))
    layout = layout_for(config, names)
    return config, Part(
        name="transformer",
        checkpoint=checkpoint,
        layout=layout,
        linears=TRANSFORMER,
        seams=seams(config.heads, config.head_dim, inner=config.inner, inners=2),
    )


def text_part(path: Path, checkpoint_at: Callable[[Path], Checkpoint]) -> Part:
    """The text encoder of the model at `path`, read no further than its names and shapes."""
    folder = folder_of(path)
    _, chat = _reader(folder)
    checkpoint = checkpoint_of(folder, "text_encoder", checkpoint_at)
    return Part(
        name="text_encoder",
        checkpoint=checkpoint,
        layout=recipe.text_layout(max(chat.layers)),
        linears=recipe.TEXT,
        instead=recipe.TEXT_INSTEAD,
    )


def _weights(path: Path) -> Path:
    """The transformer: the file given, the folder's transformer/, or BFL's file beside it."""
    if path.is_file() or any((path / "transformer").glob("*.safetensors")):
        return path if path.is_file() else path / "transformer"
    if single := sorted(file for pattern in SINGLE_FILES for file in path.glob(pattern)):
        return single[0]
    raise LoadError("no weights in transformer/, and no flux2-*.safetensors or .gguf beside it")


def _check_widths(name: str, config: Flux2Config, text: TextEncoder, vae: Any) -> None:
    """Refuse parts of different models, such as a 9B's file in a 4B's folder."""
    channels = PATCH**2 * vae.config.latent_channels
    for part, given, read in (
        ("text_encoder", text.width, config.text_dim),
        ("vae", channels, config.in_channels),
    ):
        if given != read:
            message = f"{part}/ of {name} gives {given} channels; its transformer reads {read}"
            raise LoadError(f"{message}: they are parts of different models")


def config_from_json(config: Mapping[str, Any]) -> Flux2Config:
    """Read diffusers' transformer/config.json. Raises ConfigError naming what is missing."""
    try:
        heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
        return Flux2Config(
            in_channels=config["in_channels"],
            out_channels=config.get("out_channels") or config["in_channels"],
            depth_double=config["num_layers"],
            depth_single=config["num_single_layers"],
            head_dim=head_dim,
            heads=heads,
            inner=int(heads * head_dim * config.get("mlp_ratio", 3.0)),
            text_dim=config["joint_attention_dim"],
            guidance=config.get("guidance_embeds", True),
            axes=tuple(config.get("axes_dims_rope", (32, 32, 32, 32))),
            theta=config.get("rope_theta", 2000),
        )
    except KeyError as exc:
        raise ConfigError(f"transformer/config.json lacks {exc.args[0]!r}") from exc


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Flux2Config:
    """Read the numbers of a BFL single file off its tensors.

    Only the positions are not in there: BFL's models give each of four axes a quarter of the head.
    """
    try:
        hidden, in_channels = shapes["img_in.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
        return Flux2Config(
            in_channels=in_channels,
            out_channels=shapes["final_layer.linear.weight"][0],
            depth_double=_count(shapes, "double_blocks"),
            depth_single=_count(shapes, "single_blocks"),
            head_dim=head_dim,
            heads=hidden // head_dim,
            inner=shapes["double_blocks.0.img_mlp.2.weight"][1],
            text_dim=shapes["txt_in.weight"][1],
            guidance="guidance_in.in_layer.weight" in shapes,
            axes=(head_dim // 4,) * 4,
            theta=2000,
        )
    except KeyError as exc:
        raise ConfigError(f"the checkpoint has no tensor {exc.args[0]!r}") from exc


def _count(shapes: Mapping[str, tuple[int, ...]], blocks: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{blocks}.")})


def _spec(
    name: str,
    folder: Path,
    config: Flux2Config,
    vae: Any,
    *,
    is_distilled: bool,
    remembers: bool,
) -> ModelSpec:
    """What the model says of itself; else what BFL says of dev, of klein and of klein base."""
    about = said_of_itself(folder)
    native = tuple(about.get("native_size", (1024, 1024)))
    return ModelSpec(
        name=name,
        family="flux2",
        native_size=(native[0], native[1]),
        grid=PATCH * 2 ** (len(vae.block_out_channels) - 1),
        max_side=2048,
        default_steps=about.get("default_steps", 4 if is_distilled else 50),
        max_steps=about.get("max_steps", 100),
        text_length=about.get("text_length", 512),
        guidance=about.get("guidance", GUIDANCE) if config.guidance else None,
        cfg_scale=about.get("cfg_scale", 1.0 if is_distilled or config.guidance else GUIDANCE),
        shift=_shift(config_of(folder, "scheduler")),
        references=References(most=MOST_REFERENCES, fitted="capped", in_memory=remembers),
    )


def _shift(scheduler: Mapping[str, Any]) -> float | EmpiricalShift:
    if scheduler.get("use_dynamic_shifting", False):
        return EmpiricalShift()
    return float(scheduler.get("shift", 1.0))


def _reader(folder: Path) -> tuple[Any, Chat]:
    """The class of transformers' that reads prompts, and how it is asked. Raises ConfigError."""
    kind = config_of(folder, "text_encoder").get("model_type")
    if kind not in READERS:
        known = " or ".join(READERS)
        raise ConfigError(f"a FLUX.2 reads its prompt with {known}; text_encoder/ is {kind!r}")
    return READERS[kind]


def _text(
    folder: Path,
    part: Part,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision,
) -> tuple[TextEncoder, Held]:
    reader, chat = _reader(folder)
    with reading("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", **LOCAL)
    with reading("text_encoder"), torch.device("meta"):
        config = reader.config_class.from_pretrained(folder / "text_encoder", **LOCAL)
        model = cut(reader(config).get_decoder().to(dtype), chat)
    encoder = TextEncoder(model, tokenizer, chat=chat, length=length)
    with reading("tokenizer"):
        encoder.said("a picture")  # one without a chat template is refused now
    held = precision.place(model, part, device)
    model.to_empty(device=device)
    model.rotary_emb = type(model.rotary_emb)(model.config).to(device)  # computed, in no file
    part.checkpoint.fill(model, part.layout)
    model.eval().requires_grad_(False)
    return encoder, held
