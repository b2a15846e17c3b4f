"""The bench of ranks holds what was sent against the formula, and says how much sooner they are."""

import pytest

from bench.marks import rewritten
from bench.ranks import NETWORK, WAYS, Told, Took, line, predicted, table

IMAGE = 256  # tokens


def told(way, sent=None):
    """Two ranks, of which the second is the slower one."""
    counted = [predicted(NETWORK, way, IMAGE, rank) if sent is None else sent for rank in (0, 1)]
    one = [Took(4.0, 3.0), Took(8.0, 6.0), Took(6.0, 6.0)]
    nothing = [Took(0.0, 0.0)] * 3
    return [
        Told(one, [Took(2.0, 2.0), Took(1.0, 1.0), Took(2.0, 2.0)], counted[0]),
        Told(nothing, [Took(4.0, 1.0), Took(4.0, 3.0), Took(1.0, 1.0)], counted[1]),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_that_sent_something_else_ends_it(way):
    assert line(way, IMAGE, told(way)).sent == sum(one.sent for one in told(way))
    with pytest.raises(ValueError, match=f"{way}: rank 0 sent 3 bytes; by formula"):
        line(way, IMAGE, told(way, sent=3))


def test_two_ranks_are_as_fast_as_the_slower_and_ratios_are_of_the_same_round():
    one = line("ulysses=2", IMAGE, told("ulysses=2"))
    assert (one.one_s, one.two_s, one.ratio, one.worked) == (6.0, 4.0, 2.0, 2.0)


def test_pictures_that_have_nothing_to_do_with_each_other_send_nothing():
    assert predicted(NETWORK, "data=2", IMAGE, 1) == 0


def test_a_row_is_said_for_every_way():
    rows = table([line(way, IMAGE, told(way)) for way in WAYS]).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == [f"`{way}`" for way in WAYS]


def test_a_document_keeps_what_is_not_between_the_marks():
    text = "a\n<!-- t: python -m bench.t -->\nold\n<!-- end of t -->\nb\n"
    written = rewritten(text, "t", "bench.t", "new")
    assert written == text.replace("old", "new")
    assert rewritten(written, "t", "bench.t", "new") == written


def test_a_document_without_marks_is_not_written():
    with pytest.raises(ValueError, match="unpack"):
        rewritten("a", "t", "bench.t", "new")
