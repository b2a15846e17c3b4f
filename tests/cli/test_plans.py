"""`fluxline doctor --plan` tells how a machine would draw, whatever machine it runs on."""

import json

import pytest
from typer.testing import CliRunner

from fluxline.cli import app


def asked(*words):
    return CliRunner().invoke(app, ["doctor", "--plan", *words], env={"COLUMNS": "200"})


def test_a_line_a_case_says_the_way_and_the_seconds():
    done = asked("8x80GB-nvlink")
    assert done.exit_code == 0, done.stderr
    assert "8 cards of 80 GB" in done.stdout
    assert "Predicted, not measured" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    [one] = [line for line in lines if line[:5] == ["2", "8", "×", "1024²", "FLUX.1-dev,"]]
    assert one[5:8] == ["28", "steps", "data=8"]
    assert "8 pictures: data=8, for replicas exchange nothing" in done.stdout


def test_programs_get_every_case_with_its_reasons():
    told = json.loads(asked("4x24GB-pcie", "--json").stdout)
    assert told["machine"] == "4x24GB-pcie"
    assert {(p["model"], p["side"], p["pictures"]) for p in told["plans"]} == {
        (model, side, pictures)
        for model in ("FLUX.1-dev", "FLUX.1-schnell")
        for side in (1024, 2048)
        for pictures in (1, 8)
    }
    first = told["plans"][0]
    assert first["way"] == "ulysses=2,tensor=2"
    assert 0 < first["seconds"] < first["alone_s"]
    assert first["card_bytes"] < 24 * 2**30
    assert "pipefusion on 4 would take" in first["why"][-1]


def test_what_does_not_fit_is_a_line_too():
    done = asked("1x12GB-pcie")
    assert done.exit_code == 0
    assert "does not fit" in done.stdout
    assert "hold it in fewer bits (--precision)" in done.stdout


@pytest.mark.parametrize("machine", ["4x24", "four cards", ""])
def test_a_machine_nobody_can_read_is_refused(machine):
    done = asked(machine)
    assert done.exit_code == 2
    assert "a machine is written as 4x24GB-pcie" in done.stderr
