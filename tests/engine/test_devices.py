"""A whole picture on a card that is not there: every tensor lies where what reads it does, the
numbers are the CPU's, and the host waits for the card where it must and nowhere else."""

import threading
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline

from fluxline.engine import Engine
from fluxline.engine.build import open_model, open_scorer
from fluxline.engine.placement import place
from fluxline.engine.scheduler import Budget
from fluxline.engine.tune import tune
from fluxline.images import encode
from fluxline.linear.lora import Adapter
from fluxline.samplers import SOLVERS
from tests.cards import Cards, card_of, is_pinned
from tests.drawing import drawn, jobs_of, weights_of
from tests.images.pictures import photo
from tests.lora_files import bfl_layers, random_lokr, random_lora
from tests.models.flux2.oracle import small_config
from tests.random_families import SAVERS
from tests.random_flux2 import THOUGHTS, save_random_dev, save_random_klein
from tests.streams import pretend

CARD = torch.device("cuda", 0)
PICTURE = encode(photo(64), format="png")
MASK = encode(np.dstack([np.pad(np.full((32, 32), 255, np.uint8), 16)] * 3), format="png")


@pytest.fixture
def streams(monkeypatch):
    return pretend(monkeypatch)


@pytest.fixture
def cards(streams):
    with Cards(streams) as cards:
        yield cards


def assert_equal(parts, expected):
    assert len(parts) == len(expected) > 0
    for one, other in zip(parts, expected, strict=True):
        assert np.array_equal(one, other)


SHOWN = {"references": (PICTURE,)}
VARIANTS = {
    "schnell": {},
    "dev": {"image": PICTURE, "mask": MASK, "strength": 0.7, "cfg_scale": 2.0},
    "kontext": {**SHOWN, "cfg_scale": 2.0},
    "fill": {"image": PICTURE, "mask": MASK},
    "depth": SHOWN,
    "redux": SHOWN,
    "controlnet": SHOWN,
    "klein": {**SHOWN, "cfg_scale": 2.0},
    "kv": SHOWN,
    "dev2": {"image": PICTURE, "strength": 0.7},
}


@pytest.fixture(scope="module")
def flux2_folders(tmp_path_factory):
    root, more = tmp_path_factory.mktemp("flux2"), {"double": 1, "single": 2}
    config = small_config(head_dim=64, text_dim=3 * THOUGHTS, **more)
    guided = small_config(guidance=True, text_dim=3 * THOUGHTS, **more)
    return {
        "klein": save_random_klein(root / "klein", config),
        "kv": save_random_klein(root / "kv", config, Flux2KleinKVPipeline),
        "dev2": save_random_dev(root / "dev2", guided),
    }


@pytest.fixture
def folder_of(request):
    def folder(name):
        if name in ("klein", "kv", "dev2"):
            return str(request.getfixturevalue("flux2_folders")[name])
        return str(request.getfixturevalue(f"{name}_folder"))

    return folder


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "bf16") for name in VARIANTS), ("dev", "fp32")],
)
def test_a_picture_is_that_of_the_cpu_and_no_evaluation_waits(name, precision, folder_of, streams):
    asked = {"steps": 3, **VARIANTS[name]}
    here = open_model(folder_of(name), "cpu", precision)
    expected, _, _ = drawn(here, *jobs_of(here, **asked))

    with Cards(streams) as cards:
        model = open_model(folder_of(name), "cuda", precision)
        assert {card_of(weight) for weight in weights_of(model)} == {CARD}
        pictures, _, waits = drawn(model, *jobs_of(model, **asked), cards=cards)

    assert_equal(pictures, expected)
    assert waits
    assert not any(waits)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_no_step_of_a_sampler_waits_but_for_fresh_noise(schnell, schnell_folder, cards, sampler):
    """Noise is drawn on the CPU, so that it is the same everywhere."""
    asked = {"steps": 3, "sampler": sampler, "eta": 0.5, "cfg_scale": 2.0}
    expected, _, _ = drawn(schnell, *jobs_of(schnell, **asked))

    model = open_model(str(schnell_folder), "cuda", "fp32")
    pictures, _, waits = drawn(model, *jobs_of(model, **asked), cards=cards)

    assert_equal(pictures, expected)
    fresh = sampler in ("ddim", "euler_ancestral")
    for_noise = ["to cuda in model.py:noise"] * fresh
    assert waits == [for_noise, for_noise, *[[]] * (len(waits) - 2)]


def test_a_preview_waits_once_and_is_that_of_the_cpu(schnell, schnell_folder, cards):
    job = jobs_of(schnell, steps=2)[0]
    job.request = replace(job.request, preview_every=1)
    _, expected, _ = drawn(schnell, job)

    model = open_model(str(schnell_folder), "cuda", "fp32")
    _, previews, waits = drawn(model, job, cards=cards)

    assert_equal(previews, expected)
    assert waits == [["to cpu in model.py:preview"]] * 2


def worn(model, digest, random):
    """An adapter beside every layer of a model."""
    tensors = random(bfl_layers(model.transformer.config), prefix="diffusion_model.")
    parts = model.read_adapter(tensors, {})
    return Adapter(digest, parts, frozenset(map(model.stage_of, parts)))


def test_rows_with_different_adapters_wait_in_their_first_forward_alone(dev, dev_folder, cards):
    one, other = worn(dev, "one", random_lora), worn(dev, "other", random_lokr)
    mixes = [(), ((one, 0.5),), ((one, 1.0), (other, 0.7))]
    jobs = [job for mix in mixes for job in jobs_of(dev, mix=mix, steps=3)]
    expected, _, _ = drawn(dev, *jobs)

    model = open_model(str(dev_folder), "cuda", "fp32")
    pictures, _, waits = drawn(model, *jobs, cards=cards)

    assert_equal(pictures, expected)
    assert waits[0]
    assert all("lora.py" in wait or "adapter.py" in wait for wait in waits[0])
    assert waits[1:] == [[], []]


@pytest.mark.parametrize(
    ("kind", "capability"),
    [("int8-dynamic", (9, 0)), ("fp8", (8, 0)), ("fp8", (9, 0)), ("fp4", (9, 0)), ("fp4", (10, 0))],
)
def test_layers_in_fewer_bits_lie_on_the_card_and_wait_for_nothing(
    schnell_folder, cards, monkeypatch, kind, capability
):
    pretend(monkeypatch, capability=capability)
    whole = open_model(str(schnell_folder), "cuda", "bf16")
    wanted, _, _ = drawn(whole, *jobs_of(whole, steps=2))

    model = open_model(str(schnell_folder), "cuda", kind)
    assert {card_of(weight) for weight in weights_of(model)} == {CARD}
    pictures, _, waits = drawn(model, *jobs_of(model, steps=2), cards=cards)

    assert set(waits[0]) <= {"to cuda in kind.py:_pairs", "to cuda in kind.py:_middles"}  # tables
    assert not any(waits[1:])
    (picture,), (like,) = pictures, wanted
    assert np.abs(picture.astype(int) - like).mean() < 8  # nearly the picture


@pytest.mark.parametrize("memory", ["offload", "stream"])
@pytest.mark.parametrize("budget_bytes", [1, 300_000])
def test_weights_that_visit_a_card_come_before_they_are_read_and_stay_until_they_were(
    dev, dev_folder, cards, streams, memory, budget_bytes
):
    expected, _, _ = drawn(dev, *jobs_of(dev, steps=2))
    model = open_model(str(dev_folder), "cpu", "fp32")
    homes = model.transformer.double_blocks[0].parameters()

    place(model, memory, [torch.device("cuda")], budget_bytes=budget_bytes)
    assert all(is_pinned(home) or card_of(home) == CARD for home in homes)
    pictures, _, waits = drawn(model, *jobs_of(model, steps=2), cards=cards)

    assert_equal(pictures, expected)
    assert not any(waits)
    assert streams.early == []


def test_a_card_is_measured_and_decodes_in_bands(schnell, schnell_folder, cards):
    expected, _, _ = drawn(schnell, *jobs_of(schnell, steps=1))
    model = open_model(str(schnell_folder), "cuda", "fp32")

    assert tune(model).footprint.token_bytes > 0
    model.banded.whole_pixels, model.banded.band_pixels = 0, 64 * 16
    pictures, _, _ = drawn(model, *jobs_of(model, steps=1), cards=cards)

    assert np.abs(pictures[0].astype(int) - expected[0]).max() <= 1
    assert "to cpu in bands.py:append" in cards.waits


def test_a_card_is_the_own_of_the_thread_that_computes_on_it(schnell, monkeypatch):
    taken = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda card: taken.append((threading.current_thread().name, card))
    )
    model = copy(schnell)
    model.device = torch.device("cuda", 3)
    Engine(model, budget=Budget(batch_tokens=200, resident_tokens=2000)).close()
    assert taken == [("engine", 3)]


def test_a_scorer_on_a_card_says_what_it_says_on_the_cpu(clip_folder, cards):
    here, there = (
        open_scorer(str(clip_folder), torch.device(device)).score([photo(64)], ["a fox"])
        for device in ("cpu", "cuda")
    )
    assert there == pytest.approx(here, rel=1e-6)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_family_of_diffusers_draws_what_it_draws_on_the_cpu(tmp_path, cards, family):
    folder = str(SAVERS[family](tmp_path))
    here, there = (open_model(folder, device, "fp32") for device in ("cpu", "cuda"))
    asked = {"steps": 2, "cfg_scale": 2.0}

    expected, _, _ = drawn(here, *jobs_of(here, **asked))
    pictures, _, waits = drawn(there, *jobs_of(there, **asked), cards=cards)

    assert_equal(pictures, expected)
    assert {wait for forward in waits for wait in forward} == {"tensor in model.py:_velocity"}
