"""Kronecker products are never multiplied out, and are what they would be."""

from itertools import pairwise

import pytest
import torch

from fluxline.engine.peak import peak_of
from fluxline.ops.adapter import Kronecker, bytes_of, in_dtype, sides_of

SIDES = {"a matrix": lambda h, w: (h, w), "of rank 2": lambda h, w: (h, 2, w)}


def factors(side, h, w):
    sizes = SIDES[side](h, w)
    return tuple(torch.randn(i, j) for i, j in pairwise(sizes))


def multiplied(product):
    left, right = (
        side[0] if len(side) == 1 else side[0] @ side[1] for side in (product.left, product.right)
    )
    return torch.kron(left, right)


@pytest.fixture(params=SIDES)
def left(request):
    return factors(request.param, 3, 5)


@pytest.fixture(params=SIDES)
def right(request):
    return factors(request.param, 4, 2)


def whole(product, x):
    """What it makes of x where it has one place."""
    [(row, answer)] = product.answer(x)
    return row, answer


@pytest.mark.parametrize("rows", [(0, 12), (0, 4), (3, 5), (5, 12), (7, 8)])
def test_its_rows_are_those_of_the_product(left, right, rows):
    product = Kronecker(left, right, ((rows, 2),))
    x = torch.randn(2, 6, 10)
    assert product.shape == (12, 10)
    row, answer = whole(product, x)
    assert row == 2
    torch.testing.assert_close(answer, x @ multiplied(product)[slice(*rows)].T)


def test_in_several_places_it_is_the_same_product(left, right):
    product = Kronecker(left, right, (((8, 12), 0), ((3, 8), 4)))
    x = torch.randn(3, 10)
    rows, answers = zip(*product.answer(x), strict=True)
    assert rows == (0, 4)
    matrix = multiplied(product)
    torch.testing.assert_close(answers[0], x @ matrix[8:12].T)
    torch.testing.assert_close(answers[1], x @ matrix[3:8].T)


def test_what_a_layer_does_not_read_counts_as_nothing(left, right):
    product = Kronecker(left, right, (((0, 12), 0),), columns=((1, 3), (6, 10)))
    x = torch.randn(2, 6, 6)
    own = multiplied(product)[:, [1, 2, 6, 7, 8, 9]]
    torch.testing.assert_close(whole(product, x)[1], x @ own.T)


def test_of_some_rows_of_a_layer_it_has_its_own(left, right):
    """The layer keeps rows 24 to 27 and 40 to 50, the first of them at 5."""

    def kept(begin, end):
        spans = [(24, 27, 5), (40, 50, 8)]
        inside = [(max(first, begin), min(last, end), at, first) for first, last, at in spans]
        return [((a, b), at + a - first) for a, b, at, first in inside if a < b]

    product = Kronecker(left, right, (((2, 11), 20),)).kept(kept)
    x = torch.randn(1, 10)
    row, answer = whole(product, x)
    assert row == 5
    torch.testing.assert_close(answer, x @ multiplied(product)[6:9].T)


def test_of_no_tokens_it_makes_no_answers(left, right):
    product = Kronecker(left, right, (((0, 12), 0),))
    assert whole(product, torch.randn(2, 0, 10))[1].shape == (2, 0, 12)


@pytest.mark.parametrize(("left", "right"), [((1, 64), (64, 1)), ((64, 1), (1, 64))])
def test_however_odd_its_sides_a_token_takes_no_more_than_its_layer(left, right):
    """Multiplied in the other order each token would be 64 times as wide meanwhile."""
    product = Kronecker((torch.randn(left),), (torch.randn(right),), (((0, 64), 0),))
    x = torch.randn(1, 512, 64)
    with peak_of(torch.device("cpu")) as peak:
        _, answer = whole(product, x)
    torch.testing.assert_close(answer, x @ multiplied(product).T, rtol=1e-4, atol=1e-4)
    assert peak.bytes <= 4 * answer.nbytes


def test_in_another_dtype_it_is_all_of_that(left, right):
    product = in_dtype(Kronecker(left, right, (((0, 12), 0),)), torch.bfloat16)
    tensors = [tensor for side in sides_of(product) for tensor in side]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert len(tensors) == len(left) + len(right)
    assert bytes_of(product) == 2 * sum(tensor.numel() for tensor in tensors)
