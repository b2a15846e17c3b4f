"""The table of what works with what, made of the tests that prove it.

A test says what it proves by `@pytest.mark.proves("img2img", "flux1")`, or with a third word for
the precision. `python -m tests.compatibility` collects them all and writes docs/compatibility.md;
`tests/test_compatibility.py` holds that page against the tests of every run.
"""

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
FEATURES = {
    "text to image": "a picture from words",
    "true guidance": "`cfg_scale` and a negative prompt",
    "img2img": "a picture from a picture",
    "inpainting": "a part of a picture drawn anew",
    "references": "pictures that are looked at",
    "mixed batch": "rows of different requests in one forward",
    "lora": "adapters beside the weights",
    "lokr": "adapters that are Kronecker products",
    "mixed lora": "several sets of adapters in one forward",
    "stream": "weights that visit the device in turn",
}
FULL = "float32"
HEAD = """# What works with what

Every word below is a test that ran: for a family, against what diffusers computes with the same
weights, or against the same picture drawn alone. The word is the precision it was proven in. A
dash: no test says so. Written by `python -m tests.compatibility`; do not edit.

"""


class Proofs:
    """(feature, family) -> precisions, of the tests of a run."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], set[str]] = defaultdict(set)

    @pytest.hookimpl(tryfirst=True)  # before some are left out of this run
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("proves"):
                feature, family, precision = (*mark.args, FULL)[:3]
                assert feature in FEATURES, f"{item.nodeid} proves {feature!r}, which is no feature"
                self.cells[feature, _said(family, item)].add(_said(precision, item))


def _said(word: str, item: pytest.Item) -> str:
    """A word, or the value of the parameter that it names in braces."""
    if not word.startswith("{"):
        return word
    return str(item.callspec.params[word.strip("{}")])


def page(cells: dict[tuple[str, str], set[str]]) -> str:
    """The table as Markdown: a row a family, a column a feature."""
    families = sorted({family for _, family in cells})
    lines = [_line(["", *FEATURES]), _line(["---"] * (len(FEATURES) + 1))]
    for family in families:
        words = [_words(cells.get((feature, family), ())) for feature in FEATURES]
        lines.append(_line([family, *words]))
    meanings = [f"* *{feature}*: {meaning}." for feature, meaning in FEATURES.items()]
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(meanings) + "\n"


def cells_of(text: str) -> dict[tuple[str, str], set[str]]:
    """What a page says."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    found: dict[tuple[str, str], set[str]] = {}
    for family, *words in rows[2:]:
        for feature, word in zip(FEATURES, words, strict=True):
            if word.strip() != "–":
                found[feature, family.strip()] = set(word.strip().split(", "))
    return found


def _words(precisions: Iterable[str]) -> str:
    return ", ".join(sorted(precisions, key=lambda word: (word != FULL, word))) or "–"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Collect every test and write the page."""
    proofs = Proofs()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = pytest.main(["--collect-only", "-q"], plugins=[proofs])
    if code:
        sys.exit(int(code))
    PAGE.write_text(page(proofs.cells), "utf-8")


if __name__ == "__main__":
    main()
