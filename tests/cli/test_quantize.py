"""`fluxline quantize`, and asking for a precision on the command line."""

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from fluxline.cli import app
from fluxline.images import read_recipe

CANNOT_START = 2


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def draw(out, *words):
    asked = ("--steps", 1, "--seed", 3, "--no-show", "--device", "cpu", "-o", out)
    done = run("generate", "a fox", *asked, *words)
    assert done.exit_code == 0, done.output
    return done


def test_a_folder_is_written_and_draws_what_is_drawn_from_the_full_one(schnell_folder, tmp_path):
    done = run("quantize", schnell_folder, "--precision", "int8", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "int8" in done.output

    draw(tmp_path / "one.png", "--model", tmp_path / "out")
    draw(tmp_path / "other.png", "--model", schnell_folder, "--precision", "int8")

    one, other = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("one", "other"))
    assert np.abs(one.astype(int) - other).max() <= 1


def test_a_picture_is_made_again_in_the_precision_it_was_drawn_in(schnell_folder, tmp_path):
    draw(tmp_path / "fox.png", "--model", schnell_folder, "--precision", "fp8")

    words = ("--from", tmp_path / "fox.png", "--model", schnell_folder, "-o", tmp_path / "2.png")
    done = run("generate", *words, "--no-show")

    assert done.exit_code == 0, done.output
    receipt = read_recipe((tmp_path / "2.png").read_bytes()).receipt
    assert receipt.precision == "fp8"
    assert "precision" not in done.output.replace("note: transformer", "")
    assert "the same bytes as fox.png" in done.output


def test_what_is_emulated_is_said(schnell_folder, tmp_path):
    done = draw(tmp_path / "fox.png", "--model", schnell_folder, "--precision", "fp8")

    assert "transformer is held as fp8, but multiplied in plain floats" in done.output


def test_a_precision_that_is_none_is_refused_in_words(tmp_path):
    for words in (
        ("generate", "a fox", "--precision", "int3"),
        ("quantize", "mini", "--precision", "int3", "--out", tmp_path / "out"),
    ):
        done = run(*words)
        assert done.exit_code == CANNOT_START
        assert "precision must be one of" in done.output
    assert not (tmp_path / "out").exists()
