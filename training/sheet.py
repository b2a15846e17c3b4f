"""Draw a contact sheet with Fluxline's own engine: every prompt once, seed = its number.

python -m training.sheet --target docs/mini/sheet.png [--steps 6]
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fluxline import Engine

COLUMNS, SIDE, CAPTION = 8, 128, 26  # px
PROMPTS = """
a red fox | a cat | a dog | a panda | a frog | a penguin | an owl | a butterfly
a red apple | a banana | a strawberry | a pizza | a hamburger | an ice cream | a cake | a donut
a car | a red bus | a rocket | an airplane | a sailboat | a bicycle | a train | a house
the sun | a moon | a star | a cloud | a rainbow | a red heart | a fire | a tree
a sunflower | a rose | a cactus | a mushroom | a fish | a whale | an octopus | a turtle
a 3d fox on a blue background | a flat cat on a yellow background
a 3d robot on a green background | an apple on a purple background | a 3d guitar
a noto style key on a pink background | a ghost on a black background
A futuristic city skyline at sunset
"""


def main() -> None:
    """Draw and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=None)
    args = parser.parse_args()
    prompts = [p.strip() for row in PROMPTS.strip().splitlines() for p in row.split("|")]
    args.target.parent.mkdir(parents=True, exist_ok=True)
    sheet(prompts, args.steps).save(args.target)


def sheet(prompts: list[str], steps: int | None) -> Image.Image:
    """All pictures in rows of eight, captions beneath."""
    rows = -(-len(prompts) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (SIDE + 8), rows * (SIDE + CAPTION + 6)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    with Engine("mini", device="cpu") as engine:
        for k, prompt in enumerate(prompts):
            (image,) = engine.generate(prompt, seed=k, steps=steps)
            x, y = k % COLUMNS * (SIDE + 8) + 4, k // COLUMNS * (SIDE + CAPTION + 6) + 4
            page.paste(Image.open(io.BytesIO(image.data)), (x, y))
            pen.multiline_text((x, y + SIDE + 1), _wrapped(prompt), "black", font, spacing=0)
    return page


def _wrapped(text: str, width: int = 26) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:2])


if __name__ == "__main__":
    main()
