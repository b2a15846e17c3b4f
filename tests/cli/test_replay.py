"""A picture comes back from its own file, byte for byte; what stands in the way is said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fluxline.approximation import Approximation
from fluxline.cli import app
from fluxline.images import digest, encode, encode_mask, read_recipe, stretch
from tests.images.pictures import noise, photo

ASKED = ("a red fox", "--size", "48x32", "--steps", "2", "--seed", "7", "--guidance", "7")


@pytest.fixture(scope="module")
def drawn(schnell_folder, tmp_path_factory):
    """A picture as the command line draws it."""
    path = tmp_path_factory.mktemp("drawn") / "fox.png"
    model = ("--model", str(schnell_folder))
    result = CliRunner().invoke(app, ["generate", *ASKED, "-o", str(path), *model])
    assert result.exit_code == 0, result.output
    assert "guidance 7 ignored" in result.output
    return path


@pytest.fixture
def fox(drawn, tmp_path):
    """It, in the folder of the test."""
    return Path(shutil.copy(drawn, tmp_path))


def rewritten(path, **changes):
    """The same picture with another recipe."""
    recipe = read_recipe(path.read_bytes())
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    path.write_bytes(encode(pixels, format="png", recipe=replace(recipe, **changes)))
    return recipe


def test_the_same_bytes_come_back_though_something_was_ignored(run, fox, tmp_path):
    result = run("--from", "fox.png", "-o", "again.png")

    assert result.exit_code == 0, result.output
    assert "the same bytes as fox.png" in result.output
    assert "note" not in result.output
    assert (tmp_path / "again.png").read_bytes() == fox.read_bytes()


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif"])
def test_the_same_bytes_come_back_in_every_format(run, fox, tmp_path, ending):
    run("--from", "fox.png", "-o", f"fox.{ending}", "--sampler", "heun", "--cfg-scale", "2")

    result = run("--from", f"fox.{ending}")

    assert f"the same bytes as fox.{ending}" in result.output
    [again] = tmp_path.glob("a-red-fox-7.*")
    assert again.read_bytes() == (tmp_path / f"fox.{ending}").read_bytes()


@pytest.fixture
def hat(run, tmp_path):
    """A picture drawn from `source.png`, which is larger and of another shape."""
    (tmp_path / "source.png").write_bytes(encode(photo(64)[:48], format="png"))
    result = run(*ASKED, "--image", "source.png", "--strength", "0.5", "-o", "hat.png")
    assert result.exit_code == 0, result.output
    return tmp_path / "hat.png"


def test_what_was_drawn_from_a_picture_comes_back_with_that_picture(run, hat, tmp_path):
    result = run("--from", "hat.png", "--image", "source.png", "-o", "again.png")

    assert result.exit_code == 0, result.output
    assert "the same bytes as hat.png" in result.output
    assert "note" not in result.output


def test_without_that_picture_it_is_refused_and_with_another_told(run, hat, tmp_path):
    (tmp_path / "other.png").write_bytes(encode(noise(64, 48), format="png"))
    without = run("--from", "hat.png")
    other = run("--from", "hat.png", "--image", "other.png", "-o", "again.png")

    assert without.exit_code == 2
    assert "hat.png was drawn from a picture: give it with --image" in without.output
    assert "it was drawn from another picture" in other.output


def test_the_picture_may_have_been_stretched(run, hat, tmp_path):
    source = stretch(photo(64)[:48], 48, 32)
    rewritten(hat, source=digest(source))
    result = run("--from", "hat.png", "--image", "source.png", "-o", "again.png")

    assert "another picture" not in result.output
    assert read_recipe((tmp_path / "again.png").read_bytes()).source == digest(source)


@pytest.fixture
def patched(run, tmp_path):
    """A picture of which the left half was redrawn, and something beside it drawn."""
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :32] = 255
    (tmp_path / "source.png").write_bytes(encode(photo(64)[:48], format="png"))
    (tmp_path / "mask.png").write_bytes(encode_mask(mask))
    drawn = ("--image", "source.png", "--mask", "mask.png")
    result = run("a hat", *drawn, "--expand", "0,0,32,0", "--steps", "2", "-o", "hat.png")
    assert result.exit_code == 0, result.output
    return drawn


def test_a_part_that_was_redrawn_comes_back_with_its_mask(run, patched, tmp_path):
    hat = np.asarray(Image.open(tmp_path / "hat.png"))
    assert hat.shape == (48, 96, 3)
    assert np.array_equal(hat[:, 32:48], photo(64)[:48, 32:48])

    again = run("--from", "hat.png", *patched, "--expand", "0,0,32,0", "-o", "again.png")
    assert "the same bytes as hat.png" in again.output
    assert "note" not in again.output


def test_another_mask_is_told_and_none_refused(run, patched):
    other = run("--from", "hat.png", *patched, "--expand", "0,0,32,8", "-o", "other.png")
    without = run("--from", "hat.png", "--image", "source.png")

    assert "another part of it was redrawn" in other.output
    assert without.exit_code == 2
    assert "a part of a picture was redrawn for hat.png: give its --mask" in without.output


def test_what_was_looked_at_is_asked_for(run, fox):
    rewritten(fox, references=("a" * 64, "b" * 64))
    result = run("--from", "fox.png")

    assert result.exit_code == 2
    assert "drawn after 2 pictures: give each with --reference" in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--expand", "8,0,0,0"), "expand needs the --image"),
        (("--image", "source.png", "--expand", "8,0,0"), "expand must be LEFT,TOP,RIGHT,BOTTOM"),
        (("--image", "source.png", "--expand", "9999,0,0,0"), "width must be a whole number"),
        (("--image", "source.png", "--mask", "absent.png"), "cannot read absent.png"),
        (("--reference", "source.png"), "looks at no picture"),
    ],
)
def test_pictures_that_cannot_be_drawn_from_are_said(run, tmp_path, options, said):
    (tmp_path / "source.png").write_bytes(encode(photo(64)[:48], format="png"))
    result = run("a hat", *options)

    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_another_format_has_the_same_recipe_and_no_verdict(run, fox, tmp_path):
    result = run("--from", "fox.png", "-o", "fox.webp")

    assert "the same" not in result.output
    assert read_recipe((tmp_path / "fox.webp").read_bytes()) == read_recipe(fox.read_bytes())


def test_flags_beside_override_the_recipe_and_are_said(run, fox, tmp_path):
    result = run(
        "a cat", "--from", "fox.png", "--seed", "8", "--size", "32x32", "--steps", "2", "-n", "2",
        "-o", "cat.png",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    said = "overrides the recipe: prompt 'a cat' (was 'a red fox'), n 2 (was 1), seed 8 (was 7), "
    assert said + "width 32 (was 48)\n" in result.output
    assert "the same" not in result.output
    recipe = read_recipe((tmp_path / "cat-1.png").read_bytes())
    assert (recipe.prompt, recipe.seed, recipe.params.width) == ("a cat", 9, 32)
    assert (recipe.params.height, recipe.params.steps) == (32, 2)


def test_a_flag_that_says_what_the_recipe_says_overrides_nothing(run, fox):
    result = run("--from", "fox.png", "--seed", "7", "-o", "again.png")

    assert "overrides" not in result.output
    assert "the same bytes as fox.png" in result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.9.0"}, "torch 2.9.0 then, "),
        ({"device": "cuda NVIDIA H200"}, "device cuda NVIDIA H200 then, cpu "),
        ({"dtype": "bfloat16"}, "dtype bfloat16 then, float32 now"),
        ({"weights": "0" * 32}, f"weights {'0' * 32} then, "),
        ({"sigmas": (1.0, 0.25, 0.0)}, "its schedule has other sigmas now"),
        ({"beside": 3}, "it was drawn beside 3 others"),
    ],
)
def test_what_differs_from_the_receipt_is_said_and_the_picture_drawn(
    run, fox, tmp_path, change, said
):
    receipt = read_recipe(fox.read_bytes()).receipt
    rewritten(fox, receipt=replace(receipt, **change))

    result = run("--from", "fox.png", "-o", "again.png")

    assert result.exit_code == 0, result.output
    assert f"note: the bytes may not be those of fox.png: {said}" in result.output
    assert "the same pixels as fox.png" in result.output


def test_no_file_has_more_ranks_started_than_there_are_cores(run, fox):
    recipe = read_recipe(fox.read_bytes())
    near = replace(recipe.params, parallel=Approximation(mode="distrifusion"))
    rewritten(fox, params=near, receipt=replace(recipe.receipt, parallel="ulysses=256"))

    result = run("--from", "fox.png", "--device", "cpu")

    assert result.exit_code == 2
    assert "drawn by 256 ranks (ulysses=256); here is room for 1, one a core" in result.output
    assert "say with --parallel who draws it" in result.output


def test_another_model_and_version_are_said(run, fox, tmp_path, schnell_folder):
    rewritten(fox, software="fluxline 0.0.1", receipt=None)
    shutil.copytree(schnell_folder, tmp_path / "twin")

    result = run("--from", "fox.png", "-o", "again.png", "--model", "twin")

    was = schnell_folder.name
    assert f"model {was} then, twin now; fluxline 0.0.1 then, fluxline " in result.output
    assert "it has no receipt" in result.output
    assert "the same pixels as fox.png" in result.output


def test_what_a_newer_version_wrote_is_read_as_far_as_it_is_known(run, fox, tmp_path, monkeypatch):
    recipe = read_recipe(fox.read_bytes())
    newer = json.loads(recipe.to_json()) | {"mood": "calm"}
    monkeypatch.setattr(type(recipe), "to_json", lambda self: json.dumps(newer))
    rewritten(fox)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    result = run("--from", "fox.png", "-o", "again.png")

    assert "its recipe says what is not known here: 'recipe.mood'" in result.output


def test_pixels_that_differ_are_counted(run, fox, tmp_path):
    recipe = read_recipe(fox.read_bytes())
    with Image.open(fox) as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0, 0] ^= 2
    fox.write_bytes(encode(pixels, format="png", recipe=recipe))

    result = run("--from", "fox.png", "-o", "again.png")

    assert result.exit_code == 0
    assert "not the same as fox.png: 0.022 % of the values differ, by at most 2 of" in result.output


def test_pixels_that_cannot_be_read_are_said(run, fox, tmp_path):
    data = fox.read_bytes()
    fox.write_bytes(data[: data.index(b"IDAT") + 40])

    result = run("--from", "fox.png", "-o", "again.png")

    assert result.exit_code == 0
    assert "whose pixels cannot be read" in result.output


def test_a_recipe_names_its_model_or_the_caller_must(run, fox):
    result = CliRunner().invoke(app, ["generate", "--from", "fox.png"])

    assert result.exit_code == 2
    assert "is not in the registry: give its --model" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "absent.png"), "cannot read absent.png"),
        (("--from", "plain.png"), "plain.png carries no recipe"),
        (("--from", "plain.gif"), "image must be a PNG, JPEG, WebP or AVIF file"),
        (("--from", "fox.png", "--steps", "0"), "steps must be a whole number from 1"),
        ((" ", "--from", "fox.png"), "prompt must not be empty"),
    ],
)
def test_what_cannot_be_made_again_is_said(run, fox, tmp_path, arguments, said):
    for name in ("plain.png", "plain.gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)

    result = run(*arguments)

    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
