"""`fluxline keys`: what is made is good, what is revoked is not, and no secret is listed."""

import pytest
from typer.testing import CliRunner

from fluxline.cli import app
from fluxline.jobs import Database, KeyRing


@pytest.fixture
def run(tmp_path):
    def run(*words):
        return CliRunner().invoke(app, ["keys", *words, "--data", str(tmp_path)])

    return run


def test_a_key_is_made_listed_and_revoked(run, tmp_path):
    made = run("create", "ann", "--admin", "--rate", "2", "--days", "1")
    secret = made.stdout.strip()
    database = Database(f"sqlite:///{tmp_path}/jobs.sqlite3")
    ring = KeyRing(database)
    key = ring.check(secret)
    listed = run("list").stdout
    revoked = run("revoke", key.id)

    assert (key.name, key.rate, len(key.scopes)) == ("ann", 2e6, 2)
    assert key.id in listed
    assert "good" in listed
    assert secret not in listed
    assert revoked.exit_code == 0
    assert "revoked" in run("list").stdout
    assert ring.check(secret) is None
    database.close()


@pytest.mark.parametrize("words", [("create", " "), ("revoke", "nobody"), ("create", "x" * 65)])
def test_what_is_wrong_is_said_and_ends_with_2(words, run):
    said = run(*words)

    assert said.exit_code == 2
    assert "key" in said.stderr
