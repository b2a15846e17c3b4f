"""One random model of each family, opened as a user's would be."""

import functools

import pytest

from fluxline.engine.build import open_model
from tests.random_families import SAVERS


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Opens a family's random model; the same one to all who ask."""

    @functools.cache
    def of(name):
        return open_model(str(SAVERS[name](tmp_path_factory.mktemp(name))), "cpu")

    return of
