"""A database of the test, and a clock that the test moves."""

from contextlib import ExitStack

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
def opened(database_url):
    """Open the database once more, as another server would."""
    with ExitStack() as stack:

        def opened():
            database = Database(database_url)
            stack.callback(database.close)
            return database

        yield opened


@pytest.fixture
def database(opened):
    return opened()
