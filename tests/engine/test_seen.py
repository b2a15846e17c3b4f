"""What was made of pictures is made once, while anybody needs it or there is room."""

from types import SimpleNamespace

import numpy as np
import pytest

from fluxline.engine.job import Picture
from fluxline.engine.seen import Seen
from fluxline.linear.lora import AdapterBank


class Reader:
    """A model that makes guides of ten bytes of pictures, and notes of which."""

    class Guide:
        bytes = 10

    def __init__(self):
        self.spec = SimpleNamespace(fills=False)
        self.read = []

    def guide(self, pictures):
        self.read.append(int(pictures.references[0][0, 0, 0]))
        return self.Guide()


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def guides(reader):
    """With room for one guide that nobody needs now."""
    return Seen(reader, AdapterBank({}), guide_bytes=10)


def looking_at(number):
    picture = Picture(np.full((2, 2, 3), number, dtype=np.uint8), digest=str(number))
    return SimpleNamespace(references=(picture,), source=None, mix=())


def test_a_guide_that_is_used_again_is_kept_though_another_had_its_place(guides, reader):
    first = guides.guide(looking_at(1))
    guides.guide(looking_at(2))
    assert guides.guide(looking_at(1)) is first, "rows in flight need it"
    del first
    guides.guide(looking_at(1))
    assert reader.read == [1, 2]


def test_a_guide_that_nobody_needs_goes_when_another_comes(guides, reader):
    for number in (1, 2, 1):
        guides.guide(looking_at(number))
    assert reader.read == [1, 2, 1]
