"""The README's promises, run as they stand."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fluxline.cli import app
from tests.served import served

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server")) as server:
        yield server.url


@pytest.mark.slow
def test_a_job_is_asked_followed_and_fetched(address, tmp_path):
    (block,) = [b for b in blocks("sh") if b.startswith("job=")]
    command = block.replace("http://localhost:8080", address).replace("python3", sys.executable)

    said = subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, capture_output=True)

    events, _, job = said.stdout.decode().rpartition("\n\n")
    assert events.count("event: image\n") == 4
    assert [image["seed"] for image in json.loads(job)["images"]] == [7, 8, 9, 10]


@pytest.mark.slow
def test_the_curl_draws_a_fox(address, tmp_path):
    (block,) = [b for b in blocks("sh") if b.startswith("curl")]
    command = block.replace("http://localhost:8080", address).replace("python3", sys.executable)

    subprocess.run(["bash", "-ec", f"set -o pipefail; {command}"], cwd=tmp_path, check=True)

    with Image.open(tmp_path / "fox.png") as picture:
        assert picture.size == (512, 512)


@pytest.mark.slow
def test_the_openai_sdk_draws_a_rocket(address, tmp_path):
    (block,) = [b for b in blocks("python") if "openai" in b]
    block = block.replace("http://localhost:8080", address)

    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["rocket.png", "yellow.png"]


def test_the_engine_draws_two_foxes(tmp_path, monkeypatch):
    (block,) = [b for b in blocks("python") if "Engine" in b]
    monkeypatch.chdir(tmp_path)

    exec(block, {})  # in this process, which has imported it all

    assert sorted(p.name for p in tmp_path.iterdir()) == ["fox-7.png", "fox-8.png"]


def test_the_shell_line_draws_a_fox(tmp_path, monkeypatch):
    (line,) = [b for b in blocks("sh") if b.startswith("fluxline generate")]
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(app, shlex.split(line)[1:])

    assert result.exit_code == 0, result.output
    assert (tmp_path / "fox.png").exists()


def test_every_link_leads_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text("utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()

    assert len(makefile.splitlines()) <= 30
    for target in re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
