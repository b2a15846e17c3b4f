"""Show a picture in a terminal: which protocol it speaks, and the characters to print.

Pure: reads no environment, writes to no terminal. The caller passes the one and prints the other.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluxline.errors import InvalidParams
from fluxline.images.encoder import encode

Protocol = Literal["kitty", "iterm2", "sixel", "blocks"]

KITTY_CHUNK_BYTES = 4096
CELL_PX = 10
"""Width of a character cell, assumed: asking the terminal needs a dialogue with it."""

_RUN = re.compile(r"(.)\1{3,}")
_BLOCK = "▀"  # upper half in the foreground colour, lower half in the background colour


def detect(environ: Mapping[str, str], is_tty: bool) -> Protocol | None:
    """Choose the best protocol that a terminal says it speaks; None where nothing may be drawn.

    Inside tmux and screen it is half blocks: they swallow the image protocols.
    """
    term = environ.get("TERM", "")
    program = environ.get("TERM_PROGRAM", "")
    if not is_tty or term == "dumb":
        return None
    if "TMUX" in environ or term.startswith(("screen", "tmux")):
        return "blocks"
    if "KITTY_WINDOW_ID" in environ or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if "sixel" in term or term.startswith(("foot", "mlterm", "contour")) or program == "mintty":
        return "sixel"
    return "blocks"


def render(pixels: NDArray[np.uint8], protocol: Protocol, columns: int) -> str:
    """Write a picture, uint8 (height, width, 3), as characters at most `columns` cells wide.

    Never enlarged, ends with a newline. Raises InvalidParams when `columns` is below 1.
    """
    if columns < 1:
        raise InvalidParams(f"columns must be at least 1; got {columns}", field="columns")
    if protocol == "kitty":
        return _kitty(pixels, columns)
    if protocol == "iterm2":
        return _iterm2(pixels, columns)
    if protocol == "sixel":
        return _sixel(_narrowed(pixels, columns * CELL_PX))
    return _blocks(_narrowed(pixels, columns))


def _kitty(pixels: NDArray[np.uint8], columns: int) -> str:
    """Source: kitty's "Terminal graphics protocol"; q=2 keeps the terminal from answering."""
    payload = base64.b64encode(encode(pixels, format="png")).decode()
    starts = range(0, len(payload), KITTY_CHUNK_BYTES)
    parts = []
    for start in starts:
        head = f"a=T,f=100,q=2,c={_cells(pixels, columns)}," if start == 0 else ""
        more = int(start != starts[-1])
        parts.append(f"\x1b_G{head}m={more};{payload[start : start + KITTY_CHUNK_BYTES]}\x1b\\")
    return "".join(parts) + "\n"


def _iterm2(pixels: NDArray[np.uint8], columns: int) -> str:
    """Source: iTerm2's "Inline Images Protocol"."""
    data = encode(pixels, format="png")
    head = f"inline=1;size={len(data)};width={_cells(pixels, columns)};preserveAspectRatio=1"
    return f"\x1b]1337;File={head}:{base64.b64encode(data).decode()}\x07\n"


def _sixel(pixels: NDArray[np.uint8]) -> str:
    """256 colours in bands of six rows. Source: DEC's VT330/VT340 manual, chapter 14."""
    height, width, _ = pixels.shape
    picture = Image.fromarray(pixels).quantize(256, Image.Quantize.MEDIANCUT)
    palette = np.asarray(picture.getpalette()).reshape(-1, 3)
    colours = "".join(
        f"#{number};2;{';'.join(str(round(int(part) * 100 / 255)) for part in colour)}"
        for number, colour in enumerate(palette)
    )
    indices = np.asarray(picture)
    bands = "-".join(_sixel_band(indices[top : top + 6]) for top in range(0, height, 6))
    return f'\x1bP0;1;0q"1;1;{width};{height}{colours}{bands}\x1b\\\n'


def _sixel_band(indices: NDArray[np.uint8]) -> str:
    """One band: for each of its colours, which of the six rows it paints in each column."""
    weights = (1 << np.arange(len(indices), dtype=np.uint8))[:, None]
    lines = []
    for number in np.unique(indices):
        bits = ((indices == number) * weights).sum(axis=0, dtype=np.uint8)  # (width,)
        line = (bits + 63).tobytes().decode("ascii")
        lines.append(f"#{number}" + _RUN.sub(_repeated, line))
    return "$".join(lines)


def _repeated(run: re.Match[str]) -> str:
    return f"!{len(run[0])}{run[1]}"


def _blocks(pixels: NDArray[np.uint8]) -> str:
    """Two rows of pixels a line, 24-bit colours, said only where they change."""
    if len(pixels) % 2:
        pixels = np.concatenate((pixels, pixels[-1:]))
    lines = ("".join(_block_line(*pair)) for pair in pixels.reshape(-1, 2, *pixels.shape[1:]))
    return "".join(f"{line}\x1b[0m\n" for line in lines)


def _block_line(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> Iterator[str]:
    last = None
    for over, under in zip(upper.tolist(), lower.tolist(), strict=True):
        if (over, under) != last:
            yield "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*over, *under)
            last = (over, under)
        yield _BLOCK


def _cells(pixels: NDArray[np.uint8], columns: int) -> int:
    width = int(pixels.shape[1])
    return min(columns, -(-width // CELL_PX))


def _narrowed(pixels: NDArray[np.uint8], max_width: int) -> NDArray[np.uint8]:
    height, width, _ = pixels.shape
    if width <= max_width:
        return np.ascontiguousarray(pixels)
    size = (max_width, max(1, round(height * max_width / width)))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
