"""docs/compatibility.md says what tests prove, and nothing else."""

import pytest

from tests.compatibility import PAGE, cells_of, page


def test_a_page_reads_back_as_what_it_was_written_from():
    cells = {("img2img", "flux1"): {"float32", "int8"}, ("lora", "flux2"): {"nf4"}}
    assert cells_of(page(cells)) == cells


def test_the_page_says_what_the_tests_of_this_run_prove(proofs):
    told = cells_of(PAGE.read_text("utf-8"))
    for cell, precisions in proofs.cells.items():
        assert precisions <= told.get(cell, set()), f"{cell}: run python -m tests.compatibility"


def test_what_the_page_says_is_proven_by_a_test(proofs, request):
    if request.config.args != ["tests"]:
        pytest.skip("only a run of all tests knows")
    told = cells_of(PAGE.read_text("utf-8"))
    for cell, precisions in told.items():
        assert precisions <= proofs.cells[cell], f"{cell}: run python -m tests.compatibility"
