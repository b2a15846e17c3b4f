"""Options come from where they should, in the right order, and never unnoticed."""

import io
import json
import logging
from typing import get_args

import pydantic
import pytest

from fluxline.errors import ConfigError
from fluxline.request import PrecisionName
from fluxline.settings import Settings, load_settings
from fluxline.telemetry import configure_logging, request_id_var


@pytest.fixture(autouse=True)
def _empty_house(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLUXLINE_{name.upper()}", raising=False)


def test_flag_beats_variable_beats_file_beats_default(monkeypatch, tmp_path):
    (tmp_path / "fluxline.toml").write_text("port = 1\nqueue_limit = 1\nmax_n = 1\n")
    monkeypatch.setenv("FLUXLINE_PORT", "2")
    monkeypatch.setenv("FLUXLINE_QUEUE_LIMIT", "2")

    settings = load_settings({"port": 3, "host": None})

    assert (settings.port, settings.queue_limit, settings.max_n) == (3, 2, 1)
    assert (settings.host, settings.drain_s) == ("127.0.0.1", 30.0)


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_named_file_is_read(how, monkeypatch, tmp_path):
    path = tmp_path / "other.toml"
    path.write_text('model = "big"\n[aliases]\n"dall-e-3" = "big"\n')
    if how == "variable":
        monkeypatch.setenv("FLUXLINE_CONFIG", str(path))

    settings = load_settings({"config": path} if how == "flag" else {})

    assert settings.model == "big"
    assert settings.aliases == {"dall-e-3": "big"}


@pytest.mark.parametrize(
    ("flags", "variables", "file", "said"),
    [
        ({"prot": 1}, {}, "", "unknown option prot; did you mean port"),
        ({}, {"FLUXLINE_PROT": "1"}, "", "FLUXLINE_PROT; did you mean FLUXLINE_PORT"),
        ({}, {}, "prot = 1", "unknown option prot"),
        ({"port": 70000}, {}, "", "option port"),
        ({}, {"FLUXLINE_DEVICE": "tpu"}, "", "option device.*tpu"),
        ({}, {"FLUXLINE_ALIASES": "{"}, "", "cannot be read"),
        ({}, {}, "port = ", "not valid TOML"),
        ({"config": "nowhere.toml"}, {}, "", "config must name a file"),
        ({"queue_limit": 0}, {}, "", "option queue_limit"),
    ],
)
def test_what_is_wrong_is_named(flags, variables, file, said, monkeypatch, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if file:
        (tmp_path / "fluxline.toml").write_text(file)

    with pytest.raises(ConfigError, match=said):
        load_settings(flags)


def test_what_kubernetes_sets_beside_us_is_not_an_option(monkeypatch):
    monkeypatch.setenv("FLUXLINE_SERVICE_HOST", "10.0.0.1")

    assert load_settings().host == "127.0.0.1"


def test_settings_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        load_settings().port = 1


def test_every_option_says_what_it_does():
    assert all(field.description for field in Settings.model_fields.values())


@pytest.fixture
def root_log():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_carries_the_request_it_belongs_to(root_log):
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    token = request_id_var.set("req_1")
    try:
        raise ValueError("x")
    except ValueError:
        root_log.exception("broke %s", "here")
    finally:
        request_id_var.reset(token)

    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"], line["request_id"]) == ("error", "broke here", "req_1")
    assert "ValueError" in line["traceback"]


def test_a_text_line_below_the_level_is_left_out(root_log):
    stream = io.StringIO()
    configure_logging("warning", "text", stream)

    root_log.info("quiet")
    root_log.warning("loud")

    assert "loud" in stream.getvalue()
    assert "quiet" not in stream.getvalue()


def test_the_address_kubernetes_puts_in_our_ports_place_is_not_ours(monkeypatch):
    monkeypatch.setenv("FLUXLINE_PORT", "tcp://10.96.0.7:8080")

    assert load_settings().port == 8080


def test_precisions_are_those_that_a_request_for_a_model_may_name():
    field = Settings.model_fields["precision"]

    assert get_args(field.annotation) == get_args(PrecisionName)
