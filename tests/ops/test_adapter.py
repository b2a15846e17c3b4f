"""Kronecker products are never multiplied out, and are what they would be."""

from itertools import pairwise

import pytest
import torch

from fluxline.ops.adapter import Kronecker, in_dtype, tensors_of

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


@pytest.mark.parametrize("rows", [(0, 12), (0, 4), (3, 5), (5, 12), (7, 8)])
def test_its_rows_are_those_of_the_product(left, right, rows):
    product = Kronecker(0, left, right, rows)
    x = torch.randn(2, 6, 10)
    assert product.shape == (12, 10)
    torch.testing.assert_close(product(x), x @ multiplied(product)[slice(*rows)].T)


def test_what_a_layer_does_not_read_counts_as_nothing(left, right):
    product = Kronecker(0, left, right, (0, 12), columns=((1, 3), (6, 10)))
    x = torch.randn(2, 6, 6)
    own = multiplied(product)[:, [1, 2, 6, 7, 8, 9]]
    torch.testing.assert_close(product(x), x @ own.T)


def test_of_some_rows_of_a_layer_it_has_its_own(left, right):
    product = Kronecker(20, left, right, (2, 11)).within((24, 27), 5)
    x = torch.randn(1, 10)
    assert product.row == 5
    torch.testing.assert_close(product(x), x @ multiplied(product)[6:9].T)


def test_in_another_dtype_it_is_all_of_that(left, right):
    product = in_dtype(Kronecker(0, left, right, (0, 12)), torch.bfloat16)
    assert {tensor.dtype for tensor in tensors_of(product)} == {torch.bfloat16}
    assert len(tensors_of(product)) == len(left) + len(right)
