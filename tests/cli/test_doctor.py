"""`fluxline doctor` looks, and its exit code is what `fluxline serve` would end with."""

import json
import socket

import pytest
from typer.testing import CliRunner

from fluxline.cli import app


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    """Look at this machine with these settings; what was found, by what was looked at."""
    monkeypatch.chdir(tmp_path)

    def look(text="", *flags):
        settings = f'device = "cpu"\nport = {_free_port()}\ndata = "{tmp_path}/data"\n'
        (tmp_path / "fluxline.toml").write_text(settings + text)
        done = CliRunner().invoke(app, ["doctor", "--json", *flags])
        found = json.loads(done.stdout)["findings"]
        return done.exit_code, {one["what"]: (one["state"], one["said"]) for one in found}

    return look


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_a_machine_that_can_serve_is_told_what_it_has(doctor, tmp_path):
    code, found = doctor()

    assert code == 0
    assert "torch" in found["fluxline"][1]
    assert "GiB free" in found["cpu"][1]
    assert found["draws on"][1].startswith(("cpu, float32", "cuda", "mps"))
    assert str(tmp_path / "data") in found["data"][1]
    assert found["profile mini"][0] == "ok"
    assert found["profile mini"][1].endswith("fits")
    assert {state for state, _ in found.values()} <= {"ok", "note"}


def test_what_would_keep_a_server_from_starting_is_a_fault(doctor):
    text = '[profiles.here]\n[profiles.gone]\nmodel = "nobody/nothing"\n'
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, found = doctor(f"grpc_port = {port}\n{text}")

    assert code == 2
    assert found[f"port {port}"] == (
        "fault",
        "cannot be had on 127.0.0.1: Address already in use",
    )
    assert found["profile gone"][0] == "fault"
    assert "fluxline models pull nobody/nothing" in found["profile gone"][1]
    assert found["profile here"][0] == "ok"


def test_a_profile_that_is_too_large_is_worth_a_note(doctor):
    code, found = doctor("[profiles.big]\nneeds_gb = 1e6\n")

    state, said = found["profile big"]
    assert (code, state) == (0, "note")
    assert "more than the" in said


def test_wrong_settings_are_a_fault_in_their_own_words(doctor):
    code, found = doctor("queue_limt = 1\n")

    assert code == 2
    assert found["settings"] == ("fault", "unknown option queue_limt; did you mean queue_limit?")


def test_ranks_that_do_not_go_with_the_rest_are_a_fault(doctor):
    code, found = doctor('parallel = "auto"\nmemory = "spread"\nreplicas = 2\n')

    assert code == 2
    assert found["parallel"][0] == "fault"
    assert 'memory "spread" takes all cards' in found["parallel"][1]


def test_people_get_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXLINE_PORT", str(_free_port()))
    done = CliRunner().invoke(app, ["doctor"])

    assert done.exit_code == 0, done.stdout
    assert "ok    settings" in done.stdout


def test_loras_that_a_profile_wears_are_looked_for(doctor, tmp_path):
    (tmp_path / "data" / "loras").mkdir(parents=True)
    (tmp_path / "data" / "loras" / "ink.safetensors").write_bytes(b"")
    code, found = doctor("[profiles.mini]\nloras = { imk = 0.8 }\n")
    assert (code, found["loras of mini"][0]) == (0, "note")
    assert "no LoRA 'imk' here; did you mean ink?" in found["loras of mini"][1]

    code, found = doctor("[profiles.mini]\nloras = { ink = 80 }\n")
    assert code == 2
    assert found["loras of mini"] == (
        "fault",
        "profile mini: strength of LoRA 'ink' must be from -10 to 10; got 80",
    )


def test_ranks_without_a_block_are_a_fault_and_ranks_without_a_core_a_note(doctor):
    code, found = doctor('parallel = "stages=9"\n')
    assert code == 2
    assert found["parallel"] == ("fault", "stages=9 needs a block for each rank; mini has 5")

    code, found = doctor('parallel = "ulysses=256"\n')
    assert code == 0
    assert found["parallel"][0] == "note"
    assert found["parallel"][1].startswith("mini: 256 ranks on ")


def test_whether_each_rank_has_a_block_of_a_folder_is_left_to_the_ranks(doctor, schnell_folder):
    code, found = doctor(f'model = "{schnell_folder}"\nparallel = "stages=256"\n')
    assert code == 0
    assert found["parallel"][0] == "note"  # of the cores
