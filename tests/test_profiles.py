"""Profiles and presets are read whole from the settings, and what is wrong is named."""

import os
import subprocess
from pathlib import Path

import pytest

from fluxline.errors import ConfigError
from fluxline.profiles import Preset
from fluxline.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[1] / "deploy"
FILE = """
model = "hub/dev"
precision = "nf4"
device = "cuda"
[profiles.fp4]
precision = "fp4"
fallback = "bf16"
devices = [0, 1]
[profiles.bf16]
model = "other/dev"
load = "lazy"
replicas = 2
[presets.draft]
profile = "fp4"
[presets.poster]
size = 2.0
"""


@pytest.fixture(autouse=True)
def _empty_house(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLUXLINE_{name.upper()}", raising=False)


@pytest.fixture
def settings(tmp_path):
    """Load settings from a file with this text, and flags."""

    def load(text=FILE, **flags):
        (tmp_path / "fluxline.toml").write_text(text)
        return load_settings(flags)

    return load


def test_without_profiles_the_options_make_one_that_is_called_as_its_model(settings):
    [one] = settings("", model="some/where/flux", replicas=3, device="cpu").served()

    assert (one.name, one.model, one.members, one.device) == ("flux", "some/where/flux", 3, "cpu")
    assert (one.load, one.memory, one.device_of(2)) == ("eager", "auto", "cpu:2")


def test_what_a_profile_does_not_say_the_options_say(settings):
    fp4, bf16 = settings(idle_unload_s=90).served()

    assert (fp4.model, fp4.device, fp4.idle_unload_s) == ("hub/dev", "cuda", None)
    assert (fp4.precision, bf16.precision) == ("fp4", "nf4")
    assert (bf16.model, bf16.device, bf16.idle_unload_s) == ("other/dev", "cuda", 90)


def test_a_list_of_devices_gives_each_its_worker(settings):
    fp4, bf16 = settings().served()

    assert [fp4.device_of(k) for k in range(fp4.members)] == ["cuda:0", "cuda:1"]
    assert [bf16.device_of(k) for k in range(bf16.members)] == ["cuda:0", "cuda:1"]
    [alone] = settings("", devices="3", device="cuda").served()
    assert [alone.device_of(k) for k in range(alone.members)] == ["cuda:3"]


def test_some_profiles_of_a_file_may_be_served_and_the_first_is_for_who_names_none(settings):
    assert [one.name for one in settings(profile="bf16").served()] == ["bf16"]
    assert [one.name for one in settings(profile="bf16, fp4").served()] == ["bf16", "fp4"]


def test_a_lazy_profile_that_is_for_grpc_leaves_after_a_minute(settings):
    assert settings(grpc_profile="bf16").served()[1].idle_unload_s == 60
    told = FILE.replace("replicas = 2", "idle_unload_s = 5")
    assert settings(told, grpc_profile="bf16").served()[1].idle_unload_s == 5


def test_a_preset_of_the_file_changes_one_of_ours_or_is_a_new_one(settings):
    presets = settings().named_presets()

    assert presets["draft"] == Preset(steps=0.5, profile="fp4")
    assert presets["poster"] == Preset(size=2)
    assert list(presets) == ["draft", "standard", "high", "ultra", "poster"]


@pytest.mark.parametrize("listen", ["8000=fp4,8001=bf16", {8000: "fp4", 8001: "bf16"}])
def test_ports_are_listed_on_the_command_line_and_in_the_file(listen, settings):
    assert settings(listen=listen).listen == {8000: "fp4", 8001: "bf16"}


def test_the_example_serves_each_profile_on_a_port_of_its_own():
    both = load_settings({"config": DEPLOY / "fluxline.toml"})

    assert {one.name: one.precision for one in both.served()} == {"fp4": "fp4", "bf16": "bf16"}
    assert both.listen == {8000: "fp4", 8001: "bf16"}
    assert both.named_presets()["draft"].profile == "fp4"


@pytest.mark.parametrize(
    ("script", "flags", "cards", "port", "profile"),
    [
        ("start_api.sh", ["-g", "0,2"], "0,2", 8000, "fp4"),
        ("start_bf16_api.sh", ["--drain-s", "5"], "all", 8001, "bf16"),
    ],
)
def test_a_start_script_chooses_cards_profile_and_port(
    script, flags, cards, port, profile, tmp_path
):
    program = tmp_path / "told"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "${CUDA_VISIBLE_DEVICES:-all}" "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "FLUXLINE": str(program)}
    command = [DEPLOY.parent / script, *flags]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)

    seen, verb, *words = told.stdout.split("\n")[:-1]
    given = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    settings = load_settings({**given, "config": DEPLOY.parent / given["config"]})
    assert (seen, verb, settings.port, settings.listen) == (cards, "serve", port, {})
    assert [one.name for one in settings.served()] == [profile]


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("[profiles.a]\nfoo = 1", {}, "unknown option profiles.a.foo"),
        ("[profiles.a]\nreplica = 1", {}, "profiles.a.replica; did you mean replicas"),
        ('[profiles.a]\nmemory = "disk"', {}, "profiles.a.memory: .*resident"),
        ('[profiles.a]\nmemory = "resident"\nweights_gb = 4', {}, "memory is resident"),
        ('[profiles.a]\nmemory = "spread"\ndevices = [0, 1]', {}, "takes all cards"),
        ('[profiles.a]\nload = "late"', {}, "profiles.a.load"),
        ('[profiles."a/b"]', {}, r"profiles.a/b.name"),
        ("[profiles.a]\nidle_unload_s = 1", {}, "idle_unload_s needs load"),
        ('[profiles.a]\nfallback = "a"', {}, "fallback must name another"),
        ('[profiles.a]\nfallback = "b"', {}, "profiles.a.fallback: no profile 'b'.*there is a"),
        ('[profiles.a]\ndevice = "cpu"\ndevices = [0]', {}, "device cpu has none"),
        ("", {"devices": "0,one"}, "option devices"),
        (FILE, {"profile": "fp8"}, "option profile: no profile 'fp8' here; there is fp4, bf16"),
        (FILE, {"listen": "8000=fp8"}, "option listen: no profile 'fp8'"),
        (FILE, {"listen": "8000"}, "option listen: must be PORT=PROFILE"),
        (FILE, {"listen": "port=fp4"}, "option listen"),
        (FILE, {"grpc_profile": "fp8"}, "option grpc_profile: no profile"),
        ('[profiles.a]\n[presets.x]\nprofile = "b"', {}, "presets.x.profile: no profile 'b'"),
        ("[presets.x]\nstep = 1", {}, "presets.x.step; did you mean steps"),
        ("[presets.x]\nsteps = 0", {}, "presets.x.steps"),
        (FILE, {"memory_gb": 10}, "profile fp4 must say needs_gb"),
        (
            '[profiles.a]\nneeds_gb = 11\nload = "lazy"',
            {"memory_gb": 10},
            "profile a needs 11 GiB, more",
        ),
        (
            '[profiles.a]\nneeds_gb = 6\n[profiles.b]\nneeds_gb = 5\nload = "lazy"',
            {"memory_gb": 10},
            "profile b needs 5 GiB beside the 6 of the eager ones, more than memory_gb",
        ),
        (
            "[profiles.a]\nneeds_gb = 6\n[profiles.b]\nneeds_gb = 6",
            {"memory_gb": 10},
            "the eager profiles need 12 GiB",
        ),
    ],
)
def test_what_is_wrong_is_named(text, flags, said, settings):
    with pytest.raises(ConfigError, match=said):
        settings(text, **flags)
