"""Write into the model card what must not be written by hand: credits and figures.

    python -m training.card --evaluation RUN/evaluation.json

Replaces what stands between `<!-- credits -->` and `<!-- /credits -->`, and so for `figures`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from training.export import ASSETS
from training.packages import FACES, SPRITES, Package
from training.recipe import RECIPES, Recipe
from training.things import STYLES

COLUMNS = ("thing", "style", "colour", "background")
APART = ("ceiling", "ranked right")


def credits_of(recipe: Recipe) -> str:
    """A line for every package whose pictures, or drawing code, a recipe used."""
    used = {f"the style {style}": SPRITES[style] for style in STYLES[: recipe.styles]}
    if recipe.faces:
        used |= {"faces": FACES["pixel-art"], "drawing the faces": FACES["core"]}
    return "\n".join(_line(what, package) for what, package in used.items())


def figures(found: dict[str, Any]) -> str:
    """One table: every kind of question at the first setting, the sums at the others."""
    rows = [
        "| drawn with | asked for | pictures | thing right | style | colour | background |",
        "|---|---|---|---|---|---|---|",
    ]
    settings = {name: kinds for name, kinds in found.items() if name not in APART}
    for number, (setting, kinds) in enumerate(settings.items()):
        for kind, row in kinds.items():
            if kind != "distance" and (number == 0 or kind.startswith("all ")):
                shares = " | ".join(f"{row[c]:.0%}" if c in row else "" for c in COLUMNS)
                rows.append(f"| {setting} | {kind} | {row['pictures']} | {shares} |")
    ceiling = ", ".join(f"{what} {share:.1%}" for what, share in found["ceiling"].items())
    distances = "; ".join(f"{name}: {kinds['distance']}" for name, kinds in settings.items())
    return "\n".join(
        [
            *rows,
            "",
            f"Of real pictures the classifier reads right: {ceiling}.",
            f"Of pairs of pictures the scorer ranks right: {found['ranked right']:.1%}.",
            f"Fréchet distance to the real pictures: {distances}.",
        ]
    )


def _line(what: str, package: Package) -> str:
    credit = package.credit.rstrip(".")
    return f"- {what}: `{package.name}` from npm, {package.licence}. {credit}."


def main() -> None:
    """Fill in the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--evaluation", type=Path, required=True)
    args = parser.parse_args()
    path = ASSETS / "README.md"
    found = json.loads(args.evaluation.read_text())
    parts = {"credits": credits_of(RECIPES[args.recipe]), "figures": figures(found)}
    text = path.read_text("utf-8")
    for name, part in parts.items():
        pattern = re.compile(f"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
        text = pattern.sub(lambda _, p=part, n=name: f"<!-- {n} -->\n{p}\n<!-- /{n} -->", text)
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
