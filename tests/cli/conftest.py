"""`fluxline generate` in a folder of its own, with a small random model."""

import pytest
from typer.testing import CliRunner

from fluxline.cli import app


@pytest.fixture
def run(schnell_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken

    def run(*arguments, stdin=None):
        model = () if "--model" in arguments else ("--model", str(schnell_folder))
        return CliRunner().invoke(app, ["generate", *arguments, *model], input=stdin)

    return run
