"""The command line as people type it."""

import contextlib
import errno
import os
import pty
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from fluxline.cli import app
from fluxline.cli.order import parse_lora, parse_size
from fluxline.errors import InvalidParams
from fluxline.images import read_recipe
from fluxline.request import LoraRef
from fluxline.settings import Settings


def test_a_picture_is_written_with_its_recipe_and_the_seed_said(run, tmp_path):
    result = run("a red fox", "-o", "fox.png", "--seed", "7", "--size", "48x32", "--steps", "2")

    assert result.exit_code == 0, result.output
    assert "fox.png" in result.output
    assert "seed 7" in result.output
    with Image.open(tmp_path / "fox.png") as picture:
        assert picture.size == (48, 32)
    recipe = read_recipe((tmp_path / "fox.png").read_bytes())
    assert (recipe.prompt, recipe.seed, recipe.params.steps) == ("a red fox", 7, 2)


@pytest.mark.parametrize(
    ("said", "lora"),
    [
        ("ink", LoraRef("ink")),
        ("ink:0.8", LoraRef("ink", 0.8)),
        ("styles/ink:-1", LoraRef("styles/ink", -1.0)),
        ("C:ink", LoraRef("C:ink")),
        ("C:ink:2", LoraRef("C:ink", 2.0)),
    ],
)
def test_a_lora_is_a_name_and_perhaps_a_strength(said, lora):
    assert parse_lora(said) == lora


def test_a_lora_that_is_not_there_is_told_before_anything_is_drawn(run, tmp_path):
    result = run("a fox", "-o", "fox.png", "--lora", "ink:0.5")

    assert result.exit_code == 2
    assert "no LoRA 'ink' here" in result.output
    assert not (tmp_path / "fox.png").exists()


def test_many_pictures_get_a_number_each(run, tmp_path):
    run("a fox", "-o", "fox.webp", "-n", "3", "--steps", "1")

    assert sorted(p.name for p in tmp_path.iterdir()) == [f"fox-{i}.webp" for i in range(3)]


def test_the_best_of_several_is_the_only_file_and_its_score_is_said(run, clip_folder, tmp_path):
    result = run(
        "a fox", "-o", "fox.png", "-n", "3", "--top-k", "1", "--steps", "1", "--scorer",
        str(clip_folder),
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert [p.name for p in tmp_path.iterdir()] == ["fox.png"]
    assert "(clip), rank 1" in result.output


def test_without_a_clip_the_technically_best_are_kept_in_order(run):
    result = run("a fox", "-o", "f.png", "-n", "3", "--top-k", "2", "--steps", "1")

    assert "(technical), rank 1" in result.output
    assert "(technical), rank 2" in result.output
    assert "not the prompt" in result.output


def test_the_better_ones_keep_their_numbers(run, clip_folder, tmp_path):
    run("a fox", "-o", "f.png", "-n", "3", "--top-k", "2", "--steps", "1", "--scorer",
        str(clip_folder))  # fmt: skip

    assert len(list(tmp_path.glob("f-*.png"))) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scorer", "x"), "scorer acts only with --top-k"),
        (("--top-k", "1", "--scorer", "no such folder"), "no model 'no such folder'"),
    ],
)
def test_a_scorer_that_cannot_act_is_refused_before_anything_is_drawn(run, tmp_path, options, said):
    result = run("a fox", *options)

    assert result.exit_code == 2
    assert said in result.output
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_prompt_and_seed_are_the_name(run, tmp_path):
    run("A red fox, ¡olé!", "--seed", "3", "--steps", "1")

    assert [p.name for p in tmp_path.iterdir()] == ["a-red-fox-ol-3.png"]


def test_a_name_of_our_choosing_replaces_no_file(run, tmp_path):
    for _ in range(3):
        run("a fox", "--seed", "3", "--steps", "1")

    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["a-fox-3-2.png", "a-fox-3-3.png", "a-fox-3.png"]


def test_what_cannot_be_written_is_said_before_anything_is_drawn(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    result = run("a fox", "--steps", "1")

    assert result.exit_code == 2
    assert "cannot write into" in result.output


def test_a_full_disk_is_an_error_and_not_a_traceback(run, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run("a fox", "-o", "fox.png", "--steps", "1")

    assert result.exit_code == 2
    assert "cannot write fox.png: No space left on device" in " ".join(result.output.split())


def test_the_prompt_can_come_from_standard_input(run, tmp_path):
    run("-", "-o", "fox.png", "--steps", "1", stdin="a fox\n")

    assert read_recipe((tmp_path / "fox.png").read_bytes()).prompt == "a fox"


def test_every_picture_is_written_as_soon_as_it_is_there(run, tmp_path, monkeypatch):
    written = []

    def failing(path, data):
        written.append(path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        with open(path, "wb") as file:
            file.write(data)

    monkeypatch.setattr(Path, "write_bytes", failing)

    assert run("a fox", "-o", "fox.png", "-n", "3", "--steps", "1").exit_code == 130
    assert [p.name for p in tmp_path.iterdir()] == written[:1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a prompt, or --from and a picture of ours"),
        (("a fox", "--size", "big"), "size must be like 512x512"),
        (("a fox", "--steps", "0"), "steps must be a whole number from 1"),
        (("a fox", "--sampler", "magic"), "sampler must be one of euler"),
        (("a fox", "-o", "fox.gif"), "output must end in .png"),
        (("a fox", "-o", "nowhere/fox.png"), "no folder nowhere"),
        ((" ",), "prompt must not be empty"),
        (("a fox", "--image", "nothing.png"), "cannot read nothing.png"),
        (("a fox", "--image", __file__), "image must be a whole PNG"),
        (("a fox", "--strength", "0"), "strength must be above 0"),
        (("a fox", "--model", "flux9"), "no model 'flux9'"),
        (("a fox", "--device", "tpu"), "device must be one of"),
    ],
)
def test_a_wrong_option_is_said_and_ends_with_2(run, tmp_path, arguments, said):
    result = run(*arguments)

    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["", "0", "12x", "x12", "12 12", "-1x5", "1.5x2", "999999x1"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InvalidParams):
        parse_size(size)


def test_every_setting_is_a_flag_of_serve_but_for_tables_and_secrets():
    serve = typer.main.get_command(app).commands["serve"]
    flags = {parameter.name for parameter in serve.params}

    assert Settings.model_fields.keys() - flags == {"aliases", "api_keys", "profiles", "presets"}


def test_the_version_is_said():
    assert CliRunner().invoke(app, ["--version"]).output == f"fluxline {version('fluxline')}\n"


def test_a_wrong_setting_ends_with_2():
    result = CliRunner().invoke(app, ["serve", "--port", "99999"])

    assert result.exit_code == 2
    assert "port" in result.output


def test_importing_the_command_line_does_not_import_torch():
    code = "import sys, fluxline.cli; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_picture_is_shown_in_a_terminal(schnell_folder, tmp_path):
    master, slave = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "fluxline", "generate", "a fox", "-o", "fox.png"]
    process = subprocess.Popen(
        [*command, "--steps", "1", "--model", str(schnell_folder)],
        stdout=slave,
        stderr=slave,
        cwd=tmp_path,
        env=environ,
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal ends with an error when its last writer goes
        while part := os.read(master, 1 << 16):
            shown += part
    os.close(master)

    assert process.wait() == 0
    assert b"\x1b_G" in shown


def test_a_memory_that_this_machine_cannot_give_is_refused_in_words(run):
    result = run("a fox", "-o", "fox.png", "--memory", "stream", "--device", "cpu")

    assert result.exit_code == 2
    assert "memory stream is for cards: on cpu use auto" in " ".join(result.output.split())
