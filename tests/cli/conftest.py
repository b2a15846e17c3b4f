"""`fluxline generate` in a folder of its own, with a small random model."""

import pytest
from typer.testing import CliRunner

from fluxline.cli import app
from fluxline.engine import tune


@pytest.fixture
def run(schnell_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    monkeypatch.setattr(tune, "PATIENCE_S", 0.0)  # how fast this machine is matters to no picture
    monkeypatch.setattr(tune.os, "sched_getaffinity", lambda pid: {0}, raising=False)

    def run(*arguments, stdin=None):
        model = () if "--model" in arguments else ("--model", str(schnell_folder))
        return CliRunner().invoke(app, ["generate", *arguments, *model], input=stdin)

    return run
