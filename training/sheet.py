"""Draw the contact sheets with Fluxline's own engine: seed = the number of the cell.

python -m training.sheet --target docs/mini            # all of them, or the ones named
python -m training.sheet --target docs/mini --only things faces
"""

from __future__ import annotations

import argparse
import io
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fluxline import Engine

COLUMNS, CAPTION, GAP = 8, 26, 8  # px

Params = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of a sheet; note stands beneath it in place of the prompt."""

    prompt: str
    params: Params = field(default_factory=dict)
    note: str = ""


def _cells(text: str) -> list[Cell]:
    return [Cell(p.strip()) for row in text.strip().splitlines() for p in row.split("|")]


def _sized(width: int, height: int, *prompts: str) -> list[Cell]:
    params: Params = {"width": width, "height": height}
    return [Cell(prompt, params) for prompt in prompts]


def _settings() -> list[Cell]:
    """A row for every prompt: four numbers of evaluations, then four guidances."""
    cells = []
    for prompt in ("a 3d robot on a green background", "a penguin", "a cat and a dog"):
        for steps in (2, 4, 8, 20):
            cells.append(Cell(prompt, {"steps": steps}, f"{steps} evaluations"))
        for guidance in (1.0, 2.0, 3.0, 4.0):
            cells.append(Cell(prompt, {"guidance": guidance}, f"guidance {guidance:g}"))
    return cells


SHEETS = {
    "things": _cells("""
        a red fox | a cat | a dog | a panda | a frog | a penguin | an owl | a butterfly
        a red apple | a banana | a strawberry | a pizza | a hamburger | an ice cream | a cake | a donut
        a car | a bus | a rocket | an airplane | a sailboat | a bicycle | a train | a house
        the sun | a moon | a star | a cloud | a rainbow | a red heart | a fire | a tree
        a sunflower | a rose | a cactus | a mushroom | a fish | a whale | an octopus | a turtle
        a robot | a guitar | a key | a ghost | a dinosaur | a teddy bear | a crown | a light bulb
    """),  # noqa: E501 - a row of the sheet is a row here
    "styles": [
        Cell(f"{style} {thing}")
        for style, thing in itertools.product(
            ("a 3d", "a noto style"),
            ("fox", "elephant", "car", "strawberry", "cactus", "rocket", "guitar", "castle"),
        )
    ],
    "faces": _cells("""
        pixel art portrait of a person | a person with long blond hair
        a face with short black hair, wearing glasses | a person with dark skin, wearing a red shirt
        an avatar with blue hair, wearing sunglasses | a person wearing a green hat
        a person with gray hair and tan skin, wearing a purple shirt on a yellow background
        pixel art of a person with long red hair, wearing a blue hat on a pink background
    """),
    "colours": _cells("""
        a blue apple | a green fox | a purple car | a red frog | a yellow whale | a pink cactus | an orange fish | a blue heart
        a purple strawberry | a green rose | a red dinosaur | a blue banana | a pink turtle | an orange octopus | a red bus | a yellow ghost
        a fox on a blue background | a cat on a yellow background | a dog on black | a panda on a pink background | a car on a teal background | a rose on a gray background | a moon on a navy background | an owl on a lime background
    """),  # noqa: E501
    "pairs": _cells("""
        a cat and a dog | a fox next to a tree | a moon above a house | a car on the left and a bus on the right | an apple beside a banana | a robot and a guitar | a fish below a sailboat | a panda above a pizza
        a small star in the top left corner | a tiny heart at the bottom | a small rocket on the right | a small mushroom in the bottom left corner | a tiny sun at the top | a small key on the left | a small fish in the bottom right corner | a tiny ghost in the top right corner on black
    """),  # noqa: E501
    "shapes": [
        *_sized(160, 96, "a 3d car", "a whale on a sky blue background", "a cat and a dog"),
        *_sized(160, 96, "a bus"),
        *_sized(96, 160, "a giraffe", "a rocket on a navy background", "a moon above a house"),
        *_sized(96, 160, "a cactus"),
    ],
    "settings": _settings(),
    "failures": _cells("""
        a photo of a busy street | three cats | the word hello | a dragon riding a bicycle | a red car in front of a green house | a hand | a sad fox | a city at night in the rain
    """),  # noqa: E501
}  # fmt: skip


def sheet(engine: Engine, cells: list[Cell]) -> Image.Image:
    """All pictures in rows of eight, captions beneath."""
    pictures = [
        Image.open(io.BytesIO(engine.generate(cell.prompt, seed=k, **cell.params)[0].data))
        for k, cell in enumerate(cells)
    ]
    wide = max(p.width for p in pictures) + GAP
    high = max(p.height for p in pictures) + CAPTION + GAP
    columns = min(COLUMNS, len(cells))
    page = Image.new("RGB", (columns * wide, -(-len(cells) // columns) * high), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    for k, (cell, picture) in enumerate(zip(cells, pictures, strict=True)):
        x, y = k % columns * wide + GAP // 2, k // columns * high + GAP // 2
        page.paste(picture, (x, y))
        text = _wrapped(cell.note or cell.prompt, picture.width // 5)
        pen.multiline_text((x, y + picture.height + 1), text, "black", font, spacing=0)
    return page


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:2])


def main() -> None:
    """Draw and save the sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="folder")
    parser.add_argument("--only", nargs="+", choices=SHEETS, default=list(SHEETS))
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    with Engine("mini", device="cpu") as engine:
        for name in args.only:
            sheet(engine, SHEETS[name]).save(args.target / f"{name}.png")


if __name__ == "__main__":
    main()
