"""The variants of FLUX.1: what each takes besides a prompt, and how it is asked if nobody says.

They are one network. What they were trained to read tells them apart: more tokens, more channels.
Source: black-forest-labs/flux, cli_fill.py, cli_control.py, cli_kontext.py and cli_redux.py.
"""

from dataclasses import dataclass, replace

from fluxline.errors import LoadError
from fluxline.models.flux1.transformer import FluxConfig
from fluxline.models.spec import References

KONTEXT_SIZES = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)
"""px (width, height) at which Kontext was trained to look. Source: sampling.py."""

MASK_CHANNELS = 4 * 8 * 8  # of a token: 2 x 2 latent positions of 8 x 8 px


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What tells a FLUX.1 from the plain one; guidance and steps where nobody says."""

    guidance: float = 3.5
    steps: int = 28
    fills: bool = False
    references: References | None = None


_MAP = References(most=1, is_needed=True, fitted="drawn", in_sequence=False)

PLAIN = Variant()
VARIANTS = {
    "kontext": Variant(
        guidance=2.5,
        steps=30,
        references=References(most=1, start_too=True, sizes=KONTEXT_SIZES),
    ),
    "fill": Variant(guidance=30.0, steps=50, fills=True),
    "depth": Variant(guidance=10.0, steps=50, references=_MAP),
    "canny": Variant(guidance=30.0, steps=50, references=_MAP),
    "control": Variant(references=_MAP),  # after a map of another kind
    "redux": Variant(guidance=2.5, steps=50),
}


def with_redux(variant: Variant, tokens: int) -> Variant:
    """That variant beside a Redux that reads so many tokens off a picture.

    Raises LoadError: it looks at pictures in a way of its own.
    """
    if variant.references is not None:
        raise LoadError("Redux is read beside a FLUX.1 that looks at no picture otherwise")
    looks = References(most=4, fitted="given", in_sequence=False, text_tokens=tokens)
    return replace(VARIANTS["redux"] if variant is PLAIN else variant, references=looks)


def with_controlnet(variant: Variant) -> Variant:
    """That variant beside a ControlNet. Raises LoadError: it is not the plain one."""
    if variant is not PLAIN:
        raise LoadError("a ControlNet is read beside a plain FLUX.1, which reads no picture itself")
    return replace(variant, references=_MAP)


def variant_of(config: FluxConfig, said: str) -> Variant:
    """The variant with these numbers. said: what its files and its name are called, which alone
    tells Kontext from dev and Depth from Canny.

    Raises LoadError: no FLUX.1 has that many channels.
    """
    more = config.in_channels - config.out_channels
    if more == 0:
        return VARIANTS["kontext"] if "kontext" in said.lower() else PLAIN
    if more == config.out_channels:
        kinds = [kind for kind in ("depth", "canny") if kind in said.lower()]
        return VARIANTS[kinds[0] if kinds else "control"]
    if more == config.out_channels + MASK_CHANNELS:
        return VARIANTS["fill"]
    raise LoadError(
        f"a FLUX.1 reads {config.out_channels} channels, or with a picture beside them "
        f"{2 * config.out_channels} or {2 * config.out_channels + MASK_CHANNELS}; "
        f"this one {config.in_channels}"
    )
