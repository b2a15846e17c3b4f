"""A database in a folder of the test, and a clock that the test moves."""

import pytest

from fluxline.jobs import Database


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def database(url):
    database = Database(url)
    yield database
    database.close()
