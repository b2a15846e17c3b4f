"""What is printed is the protocol to the letter, and shows the picture when read back."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fluxline.errors import InvalidParams
from fluxline.images import detect, encode, render
from tests.images.pictures import noise, ramp


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm", "TERM": "xterm-256color"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM_PROGRAM": "mintty", "TERM": "xterm"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/x"}, "blocks"),
        ({"TERM": "screen", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "dumb"}, None),
        ({}, "blocks"),
    ],
)
def test_terminal_is_known_by_what_it_says_of_itself(environ, protocol):
    assert detect(environ, is_tty=True) == protocol


def test_nothing_is_drawn_into_a_pipe():
    assert detect({"TERM": "xterm-kitty"}, is_tty=False) is None


def test_kitty_gets_the_png_in_chunks_of_4096():
    pixels = noise(120, 40)
    text = render(pixels, "kitty", 80)
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) + "\n" == text
    keys = [keys for keys, _ in parts]
    assert keys == ["a=T,f=100,q=2,c=12,m=1"] + ["m=1"] * (len(parts) - 2) + ["m=0"]
    assert all(len(data) == 4096 for _, data in parts[:-1])
    assert base64.b64decode("".join(data for _, data in parts)) == encode(pixels, format="png")


def test_kitty_chunk_that_is_alone_is_also_the_last():
    assert render(ramp(4, 4), "kitty", 80).startswith("\x1b_Ga=T,f=100,q=2,c=1,m=0;")


def test_iterm2_gets_one_inline_file_with_its_size():
    pixels = noise(990, 4)
    found = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=80;preserveAspectRatio=1:([^\x07]+)\x07\n",
        render(pixels, "iterm2", 80),
    )
    data = base64.b64decode(found[2], validate=True)
    assert len(data) == int(found[1])
    with Image.open(BytesIO(data)) as picture:
        assert np.array_equal(np.asarray(picture), pixels)


def read_sixel(text):
    """A small sixel terminal: gives what it would show, and fails on anything it cannot read."""
    found = re.fullmatch(r'\x1bP0;1;0q"1;1;(\d+);(\d+)(.*)\x1b\\\n', text, re.DOTALL)
    width, height = int(found[1]), int(found[2])
    screen = np.zeros((-(-height // 6) * 6, width, 3))
    colours, colour, x, top = {}, None, 0, 0
    token = r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])"
    assert re.sub(token, "", found[3]) == ""
    for define, *rgb, use, times, many, one, move in re.findall(token, found[3]):
        if define:
            colours[define] = [int(part) * 255 / 100 for part in rgb]
        elif use:
            colour = colours[use]
        elif move:
            x, top = 0, top + 6 * (move == "-")
        else:
            bits, end = ord(many or one) - 63, x + int(times or 1)
            for row in range(6):
                if bits >> row & 1:
                    screen[top + row, x:end] = colour
            x = end
    return screen[:height]


@pytest.mark.parametrize(("width", "height"), [(40, 30), (33, 17), (1, 1)])
def test_sixel_shows_the_picture_when_read_back(width, height):
    pixels = ramp(width, height)
    shown = read_sixel(render(pixels, "sixel", 80))
    assert shown.shape == pixels.shape
    # 256 colours of at most 101 levels a channel: mean error of a few levels of 255.
    assert np.abs(shown - pixels).mean() < 6


def test_sixel_of_a_flat_picture_is_exact_and_run_length_coded():
    text = render(np.full((12, 200, 3), [255, 0, 51], np.uint8), "sixel", 80)
    assert "!200~" in text
    assert (read_sixel(text) == [255, 0, 51]).all()


def test_sixel_is_narrowed_to_the_columns():
    assert read_sixel(render(noise(400, 100), "sixel", 20)).shape == (50, 200, 3)


def read_blocks(text):
    rows = []
    for line in text.splitlines():
        assert line.endswith("\x1b[0m")
        colour, upper, lower = None, [], []
        token = r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m|(▀)"
        assert re.sub(token, "", line) == "\x1b[0m"
        for *parts, block in re.findall(token, line):
            if block:
                upper.append(colour[:3])
                lower.append(colour[3:])
            else:
                colour = [int(part) for part in parts]
        rows += [upper, lower]
    return np.array(rows)


def test_half_blocks_show_the_picture_bit_for_bit():
    pixels = noise(30, 20)
    assert np.array_equal(read_blocks(render(pixels, "blocks", 80)), pixels)


def test_half_blocks_repeat_the_last_row_of_an_odd_picture():
    pixels = noise(5, 7)
    shown = read_blocks(render(pixels, "blocks", 80))
    assert np.array_equal(shown, np.concatenate((pixels, pixels[-1:])))


def test_half_blocks_say_a_colour_once_while_it_lasts():
    text = render(np.full((2, 50, 3), 9, np.uint8), "blocks", 80)
    assert text == "\x1b[38;2;9;9;9;48;2;9;9;9m" + "▀" * 50 + "\x1b[0m\n"


def test_wide_picture_is_narrowed_to_the_columns_in_its_own_shape():
    assert read_blocks(render(ramp(320, 160), "blocks", 64)).shape == (32, 64, 3)


def test_view_into_a_larger_picture_can_be_shown():
    view = noise(40, 40)[4:20, 3:33]
    assert np.array_equal(read_blocks(render(view, "blocks", 80)), view)
    assert read_sixel(render(view, "sixel", 80)).shape == view.shape


@pytest.mark.parametrize("protocol", ["kitty", "iterm2", "sixel", "blocks"])
def test_no_columns_are_refused(protocol):
    with pytest.raises(InvalidParams, match="columns"):
        render(ramp(2, 2), protocol, 0)
