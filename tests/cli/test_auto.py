"""`--parallel auto` is settled before anything is started."""

import pytest
from typer.testing import CliRunner

from fluxline import wire
from fluxline.cli import app
from fluxline.cli.auto import look, of_request, settled
from fluxline.cli.nodes import on_ranks
from fluxline.errors import ConfigError
from fluxline.profiles import Profile
from fluxline.request import SamplingParams
from fluxline.settings import Settings
from fluxline.worker.place import Place


def four_h100s(cards):
    return f"{len(cards) or 4}x80GB-nvlink"


def served(look=four_h100s, **options):
    settings, words = settled(
        Settings(**{"model": "flux1-dev", "parallel": "auto", **options}), look
    )
    return settings.served(), words


def test_a_server_takes_what_is_chosen_and_says_so():
    (profile,), (words,) = served()
    assert (profile.parallel, profile.members) == ("ulysses=4", 1)
    assert words.startswith("flux1-dev: parallel auto: ulysses=4: ")


def test_what_was_said_stays_and_no_card_is_looked_at():
    def nobody(cards):
        raise AssertionError("asked")

    assert served(nobody, parallel="ring=2")[0][0].parallel == "ring=2"
    assert served(nobody, device="cpu")[0][0].parallel == ""


def test_each_profile_is_settled_for_its_own_cards():
    profiles = {
        "fast": {"devices": [0, 1]},
        "other": {"devices": [2], "parallel": ""},
        "last": {"devices": [3]},
    }
    (fast, other, last), words = served(profiles=profiles)
    assert [one.parallel for one in (fast, other, last)] == ["ulysses=2", "", ""]
    assert len(words) == 2


@pytest.mark.parametrize(("replicas", "members"), [(None, 2), (1, 1)])
def test_cards_that_are_not_in_a_row_are_replicas(replicas, members):
    (profile,), (words,) = served(devices=(0, 2), replicas=replicas)
    assert (profile.degrees.ranks, profile.members, profile.device_of(0)) == (1, members, "auto:0")
    assert "ranks take cards in a row, and devices are not" in words


def test_what_does_not_go_with_what_is_chosen_is_refused_before_anything_is_started():
    with pytest.raises(ConfigError, match='memory "spread" takes all cards'):
        settled(Settings(parallel="auto", device="cpu", memory="spread", replicas=2))


def test_a_profile_may_leave_its_degrees_open_whatever_else_it_says():
    assert Profile(name="a", model="mini", parallel="auto", memory="spread").is_auto


def test_ranks_of_torchrun_all_draw_though_fewer_would_do():
    settings = Settings(model="flux1-dev", parallel="auto")
    place = Place(rank=0, size=8, local_rank=0, local_size=4)
    settings, (words,) = on_ranks(settings, place, lambda cards: "4x48GB-pcie")
    assert settings.served()[0].degrees.ranks == 8
    assert "8x48GB-pcie+2nodes" in words


def test_a_picture_on_this_cpu_is_drawn_by_one_rank():
    choice = of_request(wire.Open("mini", "auto"), SamplingParams(), "cpu", None)
    assert str(choice) == "parallel auto: one rank: no cards are here"


def test_ranks_that_were_started_on_a_cpu_divide_the_tokens():
    place = Place(rank=0, size=3, local_rank=0, local_size=3)
    choice = of_request(wire.Open("mini", "auto"), SamplingParams(), "cpu", place)
    assert choice.degrees.spelt == "ulysses=3"


def test_generate_draws_with_auto_and_says_what_was_chosen(run, tmp_path):
    result = run("a fox", "-o", "fox.png", "--steps", "1", "--device", "cpu", "--parallel", "auto")

    assert result.exit_code == 0, result.output
    assert "parallel auto: one rank: no cards are here" in result.output
    assert (tmp_path / "fox.png").is_file()


@pytest.mark.slow
def test_torch_is_asked_in_a_process_of_its_own():
    import torch

    assert bool(look(())) == torch.cuda.is_available()


def test_doctor_knows_profiles_that_leave_it_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fluxline.toml").write_text(
        f'parallel = "auto"\ndevice = "cpu"\ndata = "{tmp_path}"\nport = 0\n'
    )
    done = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "parallel auto: one rank" in done.output
