"""`fluxline models` against a hub on this machine: fetched, gone on with, checked, removed."""

import json
import os
import subprocess
import sys

import pytest

from tests.hub import COMMIT, REPO, Hub

FILES = {
    "model_index.json": b"{}",
    "transformer/config.json": b'{"a": 1}',
    "transformer/model.safetensors": os.urandom(300_000),
    "README.md": b"not wanted",
    "pytorch_model.bin": b"never wanted",
}
WEIGHTS = "transformer/model.safetensors"


@pytest.fixture
def hub():
    hub = Hub(FILES)
    yield hub
    hub.close()


@pytest.fixture
def models(hub, tmp_path):
    """Run `fluxline models` in a process of its own, which has a disk and that hub."""

    def run(*arguments, **environment):
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        home |= {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.run(
            [sys.executable, "-m", "fluxline", "models", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **home, **environment},
            timeout=110,
        )

    return run


def folder(tmp_path):
    return tmp_path / "hub" / "models--somebody--flux"


def test_a_model_is_fetched_at_a_commit_and_no_more_than_is_read(models, hub, tmp_path):
    done = models("pull", REPO)

    assert done.returncode == 0, done.stderr
    assert f"{REPO}: 3 files" in done.stdout
    assert COMMIT[:12] in done.stdout
    manifest = json.loads((folder(tmp_path) / "fluxline.json").read_text())
    assert (manifest["revision"], sorted(manifest["files"])) == (COMMIT, sorted(list(FILES)[:3]))
    assert manifest["files"][WEIGHTS] == {"size": 300_000, "sha256": hub.hashes[WEIGHTS]}
    there = folder(tmp_path) / "snapshots" / COMMIT
    assert (there / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.slow  # several processes, each of which imports torch
def test_a_pull_that_was_cut_off_goes_on_where_it_was(models, hub, tmp_path):
    hub.put(WEIGHTS, large := os.urandom(2**20) * 24)
    hub.cuts[WEIGHTS] = 23 * 2**20
    done = models("pull", REPO)

    assert done.returncode == 0, done.stderr
    ranges = [asked for verb, path, asked in hub.asked if verb == "GET" and WEIGHTS in path]
    assert ranges == [None, f"bytes={20 * 2**20}-"]  # it is written in pieces of 10 MiB
    assert (folder(tmp_path) / "snapshots" / COMMIT / WEIGHTS).read_bytes() == large


@pytest.mark.slow  # several processes, each of which imports torch
def test_a_model_that_was_changed_on_the_disk_or_on_its_way_is_not_taken(models, hub, tmp_path):
    right, hub.hashes[WEIGHTS] = hub.hashes[WEIGHTS], "0" * 64
    wrong = models("pull", REPO)
    assert wrong.returncode == 2
    assert f"{WEIGHTS} of {REPO} is not what the hub says it is" in wrong.stderr
    assert models("verify", REPO).returncode == 2  # it was never whole

    hub.hashes[WEIGHTS] = right
    assert models("pull", REPO).returncode == 0
    good = models("verify", REPO)
    (folder(tmp_path) / "snapshots" / COMMIT / WEIGHTS).resolve().write_bytes(b"else")
    changed = models("verify", REPO)

    assert (good.returncode, changed.returncode) == (0, 1)
    assert f"{WEIGHTS} was changed" in changed.stderr


@pytest.mark.slow  # several processes, each of which imports torch
def test_what_was_pulled_is_listed_opened_offline_and_removed(models, hub, tmp_path):
    assert models("pull", REPO).returncode == 0
    program = f"from fluxline.weights.locate import locate; print(locate({REPO!r}))"
    hub.close()
    opened = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url},
    )
    assert opened.stdout.strip() == str(folder(tmp_path) / "snapshots" / COMMIT)

    removed = models("remove", REPO)
    assert (removed.returncode, folder(tmp_path).exists()) == (0, False)
    again = models("remove", REPO)
    assert (again.returncode, "not on this disk" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pull", "mini"), "mini ships with fluxline"),
        (("pull", "what is this"), "neither a name that"),
        (("pull", "nobody/nothing"), "the hub does not give nobody/nothing (404)"),
        (("verify", REPO), "was not pulled"),
        (("--url", "http://127.0.0.1:9"), "no Fluxline answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, words, models):
    done = models(*arguments)

    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr
