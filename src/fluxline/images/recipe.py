"""The recipe of a picture: everything needed to make it again, as it is written into the file.

Two spellings: `to_infotext` is the `parameters` text that other programs read, `to_json` is
exact and is what `read_recipe` trusts. Where in a file they stand is `containers`' business.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, dataclass, is_dataclass, replace
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from fluxline.errors import InvalidParams
from fluxline.images.containers import MAX_TEXT_BYTES, find_text
from fluxline.images.receipt import Receipt
from fluxline.request import SEED_LIMIT, GenerationRequest, SamplingParams

INFOTEXT_KEYWORD = "parameters"
JSON_KEYWORD = "fluxline_request"
SCHEMA = 1

# How the readers of infotext call our samplers and schedules.
SAMPLER_TITLES = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "unipc": "UniPC",
}


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


T = TypeVar("T", bound=_Dataclass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What one picture was made from. Equal recipes make equal pictures on equal software.

    Raises InvalidParams when `params` has no width, height or steps yet: only what was really
    used is a recipe.
    """

    prompt: str
    seed: int  # of this picture, from 0 to SEED_LIMIT - 1
    model: str
    params: SamplingParams  # resolved
    software: str  # name and version, e.g. "fluxline 0.1.0"
    rendered: tuple[int, int] | None = None  # px (width, height), where not the asked size
    compression: int | None = None  # of the file, as asked
    source: str | None = None  # sha256 of the pixels it started from, at the asked size
    mask: str | None = None  # sha256 of the mask of what was redrawn, at the asked size
    references: tuple[str, ...] = ()  # sha256 of the pixels looked at, as the model read them
    receipt: Receipt | None = None
    unread: tuple[str, ...] = ()  # what a newer version said beside; never written

    def __post_init__(self) -> None:
        for name in ("width", "height", "steps"):
            value = getattr(self.params, name)
            if value is None or value < 1:
                raise InvalidParams(
                    f"{name} of a recipe must be at least 1; got {value}", field=name
                )
        if not 0 <= self.seed < SEED_LIMIT:
            message = f"seed must be from 0 to {SEED_LIMIT - 1}; got {self.seed}"
            raise InvalidParams(message, field="seed")

    def to_infotext(self) -> str:
        """Write the prompt, the negative prompt, and one last line of `key: value` pairs.

        LoRAs stand behind the prompt, as the readers of this text write them into it.
        The prompt stands as it was given, so a reader of this text can mistake a prompt that
        itself has a `Negative prompt:` line; readers who must not be mistaken take the JSON.
        """
        negative = self.params.negative_prompt
        loras = "".join(
            f" <lora:{lora.name}:{_number(lora.strength)}>" for lora in self.params.loras or ()
        )
        lines = [f"{self.prompt}{loras}"]
        if negative:
            lines.append(f"Negative prompt: {negative}")
        pairs = ", ".join(f"{key}: {_quoted(value)}" for key, value in self._pairs() if value)
        return "\n".join([*lines, pairs])

    def to_json(self) -> str:
        """Write every field as one line of ASCII JSON, `schema` saying how to read it.

        A field may be added without a new schema: older readers put it among the `unread`.
        """
        said = {"schema": SCHEMA, **asdict(self)}
        del said["unread"]
        return json.dumps(said, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read what `to_json` wrote. Raises InvalidParams, naming the field, for anything else."""
        if len(text) > MAX_TEXT_BYTES:
            message = f"recipe must be at most {MAX_TEXT_BYTES} characters; got {len(text)}"
            raise InvalidParams(message, field="recipe")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise InvalidParams(
                "recipe must be a JSON object; got something else", field="recipe"
            ) from exc
        found = _checked(found, dict, "recipe")
        schema = found.pop("schema", None)
        if type(schema) is not int or schema != SCHEMA:
            raise InvalidParams(f"schema must be {SCHEMA}; got {_shown(schema)}", field="schema")
        unread: list[str] = []
        found["params"] = _built(SamplingParams, found.get("params"), "params", unread)
        if found.get("receipt") is not None:
            found["receipt"] = _built(Receipt, found["receipt"], "receipt", unread)
        found.pop("unread", None)
        recipe = _built(cls, found, "recipe", unread)
        return replace(recipe, unread=tuple(unread))

    def to_request(self, request_id: str) -> GenerationRequest:
        """State the request that makes this one picture again."""
        return GenerationRequest(
            id=request_id,
            prompt=self.prompt,
            seed=self.seed,
            model=self.model,
            params=self.params,
            compression=self.compression,
        )

    def _pairs(self) -> list[tuple[str, str]]:
        """The last line in reading order; an empty value is left out. `Steps` opens it always."""
        params = self.params
        return [
            ("Steps", str(params.steps)),
            ("Sampler", SAMPLER_TITLES.get(params.sampler, params.sampler)),
            ("Schedule type", params.schedule.capitalize()),
            ("CFG scale", _number(1.0 if params.cfg_scale is None else params.cfg_scale)),
            ("Distilled CFG Scale", "" if params.guidance is None else _number(params.guidance)),
            ("Seed", str(self.seed)),
            ("Size", f"{params.width}x{params.height}"),
            ("Rendered size", "{}x{}".format(*self.rendered) if self.rendered else ""),
            ("Model", self.model),
            ("Lora hashes", self._lora_hashes()),
            ("Denoising strength", "" if params.strength is None else _number(params.strength)),
            ("Eta DDIM", _number(params.eta) if params.sampler == "ddim" and params.eta else ""),
            ("Parallel", self.params.parallel.spelt if self.params.parallel else ""),
            ("Version", self.software),
        ]

    def _lora_hashes(self) -> str:
        """As `name: hash`, of those that acted."""
        acting = [lora.name for lora in self.params.loras or () if lora.strength]
        hashes = self.receipt.loras if self.receipt else ()
        return ", ".join(f"{name}: {hash}" for name, hash in zip(acting, hashes, strict=False))


def read_recipe(data: bytes) -> Recipe | None:
    """Read the recipe back from a PNG, JPEG, WebP or AVIF file of ours; None where there is none.

    No pixel is decoded. Raises UnsupportedFormat for another kind of file, InvalidParams for
    a broken file, a text above MAX_TEXT_BYTES, or a recipe that is not one.
    """
    text = find_text(data, JSON_KEYWORD)
    return None if text is None else Recipe.from_json(text)


def _quoted(value: str) -> str:
    """The readers' rule: JSON quotes where a bare value would end early or look quoted."""
    needs_quotes = any(mark in value for mark in ',:\n\r"') or value != value.strip()
    return json.dumps(value, ensure_ascii=False) if needs_quotes else value


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _built(cls: type[T], found: Any, where: str, unread: list[str]) -> T:  # Any: fresh from JSON
    """Build a dataclass from a JSON object, each value held against the field's own type.

    What has no field is added to `unread`.
    """
    found = _checked(found, dict, where)
    known = cls.__dataclass_fields__
    unread += [_shown(f"{where}.{name}") for name in sorted(found.keys() - known.keys())]
    hints = get_type_hints(cls)
    values = {
        name: _checked(_thawed(value, hints[name], name, unread), hints[name], name)
        for name, value in found.items()
        if name in known
    }
    for name, field in known.items():
        is_needed = field.default is MISSING and field.default_factory is MISSING
        if is_needed and name not in values:
            raise InvalidParams(f"{where} lacks its field {name}", field=name)
    return cls(**values)


def _thawed(value: Any, hint: Any, name: str, unread: list[str]) -> Any:  # Any: JSON
    """An object as the dataclass that it was, a list as the tuple, of those where it has them."""
    if isinstance(value, dict):
        return next((_built(of, value, name, unread) for of in _dataclasses(hint)), value)
    if not isinstance(value, list):
        return value
    for one_of in (hint, *get_args(hint)):
        of = next(iter(get_args(one_of)), None)
        if get_origin(one_of) is tuple and isinstance(of, type) and is_dataclass(of):
            return tuple(_built(of, one, name, unread) for one in value)
    return tuple(value)


def _dataclasses(hint: Any) -> Iterator[type[Any]]:  # Any: a run-time type
    return (of for of in (hint, *get_args(hint)) if isinstance(of, type) and is_dataclass(of))


def _checked(value: Any, hint: Any, name: str) -> Any:  # Any: JSON against a run-time type
    if not _fits(value, hint):
        wanted = getattr(hint, "__name__", str(hint))
        message = f"{name} of a recipe must be {wanted}; got {_shown(value)}"
        raise InvalidParams(message, field=name)
    return value


def _fits(value: Any, hint: Any) -> bool:  # Any: JSON against a run-time type
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        wanted = args[:1] * len(value) if args[-1:] == (...,) and isinstance(value, tuple) else args
        return (
            isinstance(value, tuple)
            and len(value) == len(wanted)
            and all(_fits(part, arg) for part, arg in zip(value, wanted, strict=True))
        )
    if hint is float:
        return (type(value) is float and math.isfinite(value)) or (
            type(value) is int and abs(value) <= 2**53  # what a float holds exactly
        )
    return type(value) is hint


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
