"""Open a FLUX.1 from disk: diffusers' folder layout, or a single file of BFL's names inside one.

Reads configurations and says which parts a folder lacks; tensors are streamed by whoever is passed
in as `checkpoint_at`, into layers that hold them as `precision` says. A model may say more of
itself in a `fluxline.json`: trained sizes, defaults, sizes of pictures it looks at, a preview map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

from fluxline.errors import ConfigError, LoadError
from fluxline.models.base import Checkpoint, Held, Part, Precision, Share, whole
from fluxline.models.flux.names import is_bfl
from fluxline.models.flux.parts import checkpoint_of, fill_share, folder_of, note_held, vae_of
from fluxline.models.flux.recipe import TRANSFORMER
from fluxline.models.flux.seams import seams
from fluxline.models.flux1 import recipe
from fluxline.models.flux1.controlnet import ControlNet
from fluxline.models.flux1.model import Flux1, PreviewMap
from fluxline.models.flux1.names import controlnet_layout, layout_for
from fluxline.models.flux1.redux import Projection, Redux
from fluxline.models.flux1.text import TextEncoders
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from fluxline.models.flux1.variants import Variant, variant_of, with_controlnet, with_redux
from fluxline.models.folder import (
    LOCAL,
    config_of,
    fingerprint_of,
    read_json,
    reading,
    said_of_itself,
)
from fluxline.models.spec import DynamicShift, ModelSpec, References

PARTS = ("text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2", "scheduler")
REDUX = ("image_encoder", "image_embedder")


def load(
    path: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint_at: Callable[[Path], Checkpoint],
    precision: Precision,
    share: Share = whole,
    beside: Path | None = None,
) -> Flux1:
    """Open the model at `path`, a folder or a single .safetensors or .gguf file inside one.

    share: of the transformer. beside: the folder of a Redux; None: that of the model, if there is
    one in it. A ControlNet lies in the model's folder.
    Raises LoadError: a part is missing, a config is wrong, or tensors do not fit.
    """
    folder = folder_of(path)
    _require_parts(folder, name)
    about = said_of_itself(folder)
    config, of_transformer = transformer_part(path, checkpoint_at)
    with torch.device("meta"):
        network = FluxTransformer(config).to(dtype)
    transformer, held = fill_share(network, of_transformer, device, precision, share)
    vae = vae_of(AutoencoderKL, folder, device, dtype)
    variant = variant_of(config, f"{name} {_weights(path).name} {_pipeline(folder)}")
    eyes, steering = beside or folder, folder / "controlnet"
    more: list[Checkpoint] = []
    if redux := _redux(eyes, config, checkpoint_at, device, dtype):
        variant = with_redux(variant, redux.tokens)
        more += [checkpoint_at(eyes / part) for part in REDUX]
    if controlnet := _controlnet(steering, about, checkpoint_at, device, dtype):
        variant = with_controlnet(variant)
        more.append(checkpoint_at(steering))
    of_t5 = t5_part(path, checkpoint_at)
    t5, t5_held = _t5(folder, of_t5, device, dtype, precision)
    of_clip, of_vae = (checkpoint_of(folder, it, checkpoint_at) for it in ("text_encoder", "vae"))
    grid = 2 * 2 ** (len(vae.config.block_out_channels) - 1)
    spec = _spec(name, about, variant, config, config_of(folder, "scheduler"), grid)
    return Flux1(
        note_held(spec, held, t5_held, of_t5),
        transformer=transformer,
        text=_text(folder, t5, spec.text_length, device, dtype),
        vae=vae,
        weights=fingerprint_of(of_transformer.checkpoint, of_clip, of_t5.checkpoint, of_vae, *more),
        preview=_preview(about.get("preview"), device),
        redux=redux,
        controlnet=controlnet,
    )


def parts(path: Path, checkpoint_at: Callable[[Path], Checkpoint]) -> tuple[Part, ...]:
    """The parts of the model at `path` whose layers may be held in fewer bits. Raises LoadError."""
    return transformer_part(path, checkpoint_at)[1], t5_part(path, checkpoint_at)


def transformer_part(
    path: Path, checkpoint_at: Callable[[Path], Checkpoint]
) -> tuple[FluxConfig, Part]:
    """The transformer of the model at `path`, read no further than its names and shapes."""
    weights = _weights(path)
    checkpoint = checkpoint_at(weights)
    about = (weights if weights.is_dir() else folder_of(path) / "transformer") / "config.json"
    names = list(checkpoint.shapes)
    if is_bfl(names):
        said = read_json(about) if about.exists() else {}
        config = config_from_shapes(checkpoint.shapes, said.get("axes_dims_rope"))
    else:
        config = config_from_json(read_json(about))
    layout = layout_for(config, names)
    return config, Part(
        name="transformer",
        checkpoint=checkpoint,
        layout=layout,
        linears=TRANSFORMER,
        seams=seams(config.heads, config.head_dim, inner=4 * config.hidden, inners=1),
    )


def t5_part(path: Path, checkpoint_at: Callable[[Path], Checkpoint]) -> Part:
    """The T5 encoder of the model at `path`, read no further than its names and shapes."""
    checkpoint = checkpoint_of(folder_of(path), "text_encoder_2", checkpoint_at)
    return Part(
        name="text_encoder_2",
        checkpoint=checkpoint,
        layout=recipe.t5_layout(list(checkpoint.shapes)),
        linears=recipe.T5,
        instead=recipe.T5_INSTEAD,
    )


def _require_parts(folder: Path, name: str) -> None:
    if absent := [part for part in PARTS if not (folder / part).is_dir()]:
        message = f"{name} lacks {', '.join(f'{part}/' for part in absent)}"
        if (folder / "image_embedder").is_dir():
            message += "; a Redux is laid into a model's folder, or opened as flux1-redux-dev"
        raise LoadError(message)


def _weights(path: Path) -> Path:
    """The transformer: the file given, the folder's transformer/, or BFL's file beside it."""
    if path.is_file() or _holds_weights(path / "transformer"):
        return path if path.is_file() else path / "transformer"
    if single := sorted((*path.glob("flux1-*.safetensors"), *path.glob("flux1-*.gguf"))):
        return single[0]
    raise LoadError("no weights in transformer/, and no flux1-*.safetensors or .gguf beside it")


def _holds_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _t5(
    folder: Path, part: Part, device: torch.device, dtype: torch.dtype, precision: Precision
) -> tuple[torch.nn.Module, Held]:
    """Read by transformers, or by us if a layer is to be held otherwise than transformers would."""
    transformers_logging.disable_progress_bar()
    if not precision.changes(part):
        with reading(part.name):
            options = {"dtype": dtype, "use_safetensors": True, **LOCAL}
            t5 = T5EncoderModel.from_pretrained(folder / part.name, **options)
        return t5.to(device).eval(), Held()
    with reading(part.name), torch.device("meta"):
        t5 = T5EncoderModel(T5Config.from_pretrained(folder / part.name, **LOCAL)).to(dtype)
    held = precision.place(t5, part, device)
    t5.to_empty(device=device)
    t5.tie_weights()
    part.checkpoint.fill(t5, part.layout)
    return t5.eval().requires_grad_(False), held


def config_from_json(config: Mapping[str, Any], part: str = "transformer") -> FluxConfig:
    """Read diffusers' config.json of a part. Raises ConfigError naming what is missing."""
    try:
        return FluxConfig(
            in_channels=config["in_channels"],
            out_channels=config.get("out_channels") or config["in_channels"],
            depth_double=config["num_layers"],
            depth_single=config["num_single_layers"],
            head_dim=config["attention_head_dim"],
            heads=config["num_attention_heads"],
            text_dim=config["joint_attention_dim"],
            pooled_dim=config["pooled_projection_dim"],
            guidance=config["guidance_embeds"],
            axes=tuple(config.get("axes_dims_rope", (16, 56, 56))),
        )
    except KeyError as exc:
        raise ConfigError(f"{part}/config.json lacks {exc.args[0]!r}") from exc


def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], axes: Sequence[int] | None = None
) -> FluxConfig:
    """Read the numbers of a BFL single file off its tensors.

    Only the axes are not in there: if they are not given, BFL's, which are 16, 56, 56 of 128.
    """
    try:
        hidden, in_channels = shapes["img_in.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
        eighth = head_dim // 8
        return FluxConfig(
            in_channels=in_channels,
            out_channels=shapes["final_layer.linear.weight"][0],
            depth_double=_count(shapes, "double_blocks"),
            depth_single=_count(shapes, "single_blocks"),
            head_dim=head_dim,
            heads=hidden // head_dim,
            text_dim=shapes["txt_in.weight"][1],
            pooled_dim=shapes["vector_in.in_layer.weight"][1],
            guidance="guidance_in.in_layer.weight" in shapes,
            axes=tuple(axes or (eighth, *[(head_dim - eighth) // 2] * 2)),
        )
    except KeyError as exc:
        raise ConfigError(f"the checkpoint has no tensor {exc.args[0]!r}") from exc


def _count(shapes: Mapping[str, tuple[int, ...]], blocks: str) -> int:
    numbers = {name.split(".")[1] for name in shapes if name.startswith(f"{blocks}.")}
    return len(numbers)


def _spec(
    name: str,
    about: Mapping[str, Any],
    variant: Variant,
    config: FluxConfig,
    scheduler: Mapping[str, Any],
    grid: int,
) -> ModelSpec:
    """What the model says of itself; else what BFL says of its variant."""
    native = tuple(about.get("native_size", (1024, 1024)))
    return ModelSpec(
        name=name,
        family="flux1",
        native_size=(native[0], native[1]),
        grid=grid,
        trained_sizes=tuple((w, h) for w, h in about.get("trained_sizes", ())),
        max_side=2048,
        default_steps=about.get("default_steps", variant.steps if config.guidance else 4),
        max_steps=about.get("max_steps", 100),
        text_length=about.get("text_length", 512 if config.guidance else 256),
        guidance=about.get("guidance", variant.guidance) if config.guidance else None,
        shift=_shift(scheduler),
        fills=variant.fills,
        references=_references(about, variant),
    )


def _references(about: Mapping[str, Any], variant: Variant) -> References | None:
    looks = variant.references
    if looks is None or "reference_sizes" not in about:
        return looks
    return replace(looks, sizes=tuple((w, h) for w, h in about["reference_sizes"]))


def _shift(scheduler: Mapping[str, Any]) -> float | DynamicShift:
    if not scheduler.get("use_dynamic_shifting", False):
        return float(scheduler.get("shift", 1.0))
    names = DynamicShift.__dataclass_fields__
    return DynamicShift(**{key: scheduler[key] for key in names if key in scheduler})


def _text(
    folder: Path, t5: torch.nn.Module, length: int, device: torch.device, dtype: torch.dtype
) -> TextEncoders:
    options = {"dtype": dtype, "use_safetensors": True, **LOCAL}
    with reading("text_encoder"):
        clip = CLIPTextModel.from_pretrained(folder / "text_encoder", **options)
    with reading("tokenizer"):
        words = AutoTokenizer.from_pretrained(folder / "tokenizer", **LOCAL)
    with reading("tokenizer_2"):
        words_2 = AutoTokenizer.from_pretrained(folder / "tokenizer_2", **LOCAL)
    return TextEncoders(
        clip=clip.to(device).eval(),
        clip_tokenizer=words,
        t5=t5,
        t5_tokenizer=words_2,
        length=length,
    )


def _redux(
    folder: Path,
    config: FluxConfig,
    checkpoint_at: Callable[[Path], Checkpoint],
    device: torch.device,
    dtype: torch.dtype,
) -> Redux | None:
    if not (folder / "image_embedder").is_dir():
        return None
    local = {"local_files_only": True}
    with reading("image_encoder"):
        siglip = SiglipVisionModel.from_pretrained(
            folder / "image_encoder", dtype=dtype, use_safetensors=True, **local
        )
    with reading("feature_extractor"):
        eye = SiglipImageProcessorPil.from_pretrained(folder / "feature_extractor", **local)
    projection = Projection(siglip.config.hidden_size, config.text_dim).to(device, dtype)
    checkpoint_at(folder / "image_embedder").fill(projection, lambda name, part: [(name, 0, part)])
    return Redux(
        siglip=siglip.to(device).eval(),
        eye=eye,
        projection=projection.eval().requires_grad_(False),
    )


def _controlnet(
    folder: Path,
    about: Mapping[str, Any],
    checkpoint_at: Callable[[Path], Checkpoint],
    device: torch.device,
    dtype: torch.dtype,
) -> ControlNet | None:
    if not folder.is_dir():
        return None
    said = read_json(folder / "config.json")
    for word, what in (
        ("num_mode", "modes (a union of several)"),
        ("conditioning_embedding_channels", "layers that read pixels (x-labs' kind)"),
    ):
        if said.get(word) is not None:
            raise LoadError(f"controlnet/ has {what}, which are not read here")
    config = config_from_json(said, "controlnet")
    with torch.device("meta"):
        net = ControlNet(config, about.get("controlnet_scale", 1.0))
    net = net.to(dtype).to_empty(device=device)
    checkpoint_at(folder).fill(net, controlnet_layout(config))
    return net.eval().requires_grad_(False)


def _preview(about: Mapping[str, Any] | None, device: torch.device) -> PreviewMap | None:
    if about is None:
        return None
    weight = torch.tensor(about["matrix"], device=device)
    return PreviewMap(weight, torch.tensor(about["bias"], device=device))


def _pipeline(folder: Path) -> str:
    """What diffusers calls the pipeline; empty: nobody says."""
    index = folder / "model_index.json"
    return str(read_json(index).get("_class_name", "")) if index.exists() else ""
