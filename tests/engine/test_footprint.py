"""What a picture needs is known before it is drawn: held against real peaks."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fluxline.ability import Footprint, InBands, check
from fluxline.engine import Engine, tune
from fluxline.engine.peak import free_bytes, peak_of
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.errors import TooLarge
from fluxline.request import SamplingParams

BUDGET = Budget(batch_tokens=200, resident_tokens=2000)
ROOM = Footprint(
    free_bytes=2**30,
    token_bytes=2**18,
    pixel_bytes=512,
    grid=16,
)


@pytest.fixture(scope="module")
def mini():
    from fluxline.engine.build import open_model

    return open_model("mini", "cpu")


@pytest.fixture(scope="module")
def measured(mini):
    return tune.tune(mini).footprint


@torch.inference_mode()
def peaks(model, width, height, rows):
    """What a forward of so many rows and a decoding really take."""
    (conditioning,) = model.encode(["a fox"])
    context = model.context(
        conditioning, width=width, height=height, guidance=model.spec.guidance, sigmas=[0.7]
    )
    x = model.noise(torch.Generator().manual_seed(0), width, height)[None]
    with peak_of(model.device) as forward:
        model.evaluate(x.repeat(rows, 1, 1), [0.7] * rows, [context] * rows)
    with peak_of(model.device) as decoding:
        model.decode(x, width, height)
    return forward.bytes, decoding.bytes, context.image_tokens + context.text_tokens


@pytest.mark.parametrize(
    ("width", "height", "rows"), [(64, 64, 1), (128, 128, 5), (384, 256, 1), (512, 512, 2)]
)
def test_the_fitted_memory_is_within_a_tenth_of_the_real_peak(mini, measured, width, height, rows):
    forward, decoding, tokens = peaks(mini, width, height, rows)
    assert rows * tokens * measured.token_bytes == pytest.approx(forward, rel=0.1)
    assert width * height * measured.pixel_bytes == pytest.approx(decoding, rel=0.1)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (512, 512), (512, 1024)])
def test_so_is_that_of_a_decoding_in_bands(mini, measured, monkeypatch, width, height):
    monkeypatch.setattr(mini.banded, "whole_pixels", 0)
    monkeypatch.setattr(mini.banded, "band_pixels", 2**14)
    small = replace(measured, free_bytes=0, in_bands=replace(measured.in_bands, band_pixels=2**14))
    _, decoding, _ = peaks(mini, width, height, 1)
    assert small.decoding_bytes(width * height) == pytest.approx(decoding, rel=0.1)


def test_a_peak_is_what_lives_at_once_and_not_all_that_was_made():
    with peak_of(torch.device("cpu")) as peak:
        for _ in range(10):
            made = torch.ones(1000)
            also = made + 1
            view = also.view(10, 100)
            view.add_(1)
    assert 2 * 4000 <= peak.bytes <= 4 * 4000


def test_what_a_container_may_have_bounds_what_is_free(tmp_path, monkeypatch):
    from fluxline.engine import peak

    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(peak, "CONTAINER", tmp_path)
    assert free_bytes(torch.device("cpu")) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 2000


def test_what_never_fits_is_refused_with_the_size_that_would():
    # 4096 MiB of memory at 2048x2048; at 1024x1024, 64 x 64 + 0 tokens take exactly 1 GiB
    with pytest.raises(TooLarge) as caught:
        ROOM.vet(2048, 2048, rows=1, other_tokens=0)
    assert caught.value.message == (
        "2048x2048 needs 4.0 GiB of memory beside the model; 1.0 GiB are there: 1024x1024 would fit"
    )
    ROOM.vet(1024, 1024, rows=1, other_tokens=0)
    with pytest.raises(TooLarge):
        ROOM.vet(1024, 1024, rows=2, other_tokens=0)
    with pytest.raises(TooLarge):
        ROOM.vet(1024, 1024, rows=1, other_tokens=1)
    with pytest.raises(TooLarge, match="nothing of that shape"):
        replace(ROOM, free_bytes=10).vet(1024, 64, rows=1, other_tokens=0)


def test_decoding_counts_too():
    hungry = replace(ROOM, pixel_bytes=2048)
    with pytest.raises(TooLarge, match="720x720 would fit"):
        hungry.vet(1024, 1024, rows=1, other_tokens=0)


def test_what_is_too_large_to_be_decoded_whole_is_vetted_as_decoded_in_bands():
    whole = replace(ROOM, pixel_bytes=2048)
    in_bands = InBands(kept_bytes=512, band_bytes=2048, band_pixels=2**16)
    banded = replace(whole, in_bands=in_bands)
    most = whole.whole_pixels  # 2**19
    assert banded.decoding_bytes(most) == 2048 * most == ROOM.free_bytes
    assert banded.decoding_bytes(most + 1) == pytest.approx(512 * most + 2**27, rel=1e-5)
    banded.vet(1024, 1024, rows=1, other_tokens=0)  # 512 MiB and 128 MiB
    with pytest.raises(TooLarge, match="2048x2048 needs"):
        banded.vet(2048, 2048, rows=1, other_tokens=0)


def test_an_engine_that_measured_decodes_in_bands_what_does_not_fit_whole(
    schnell_folder, monkeypatch
):
    from fluxline.engine.build import open_model

    model = open_model(str(schnell_folder), "cpu")
    model.banded.band_pixels = 1024
    expected = drawn(model)
    fits = tune.tune(model).footprint
    free = int(0.99 * 128 * 64 * fits.pixel_bytes / tune.USABLE)
    monkeypatch.setattr(tune, "free_bytes", lambda device: free)
    in_bands = []
    model.banded.networks()[1].units[0].register_forward_pre_hook(
        lambda _, args: in_bands.append(args[1] is not None)
    )
    picture = drawn(model)
    assert in_bands[-1] is True
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_a_picture_that_runs_out_of_memory_whole_is_decoded_in_bands(schnell_folder, monkeypatch):
    """As a card may that had more free when it was measured."""
    from fluxline.engine.build import open_model

    model = open_model(str(schnell_folder), "cpu")
    model.banded.band_pixels = 1024
    expected = drawn(model, BUDGET)
    decode, tried = model.decode, []

    def decode_in_bands_alone(x, width, height):
        tried.append((len(x), model.banded.whole_pixels))
        if tried[-1][1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(x, width, height)

    monkeypatch.setattr(model, "decode", decode_in_bands_alone)
    assert np.abs(drawn(model, BUDGET).astype(int) - expected).max() <= 1
    assert tried == [(1, math.inf), (1, 0)]
    assert model.banded.whole_pixels == math.inf, "the next one is tried whole"


def drawn(model, budget=None):
    with Engine(model, budget=budget, threads=1) as engine:
        (image,) = engine.generate("a fox", width=128, height=64, steps=1, seed=3)
    return np.asarray(Image.open(io.BytesIO(image.data)))


def test_doors_refuse_by_the_same_numbers(schnell):
    info = replace(schnell.spec.info("cpu", "float32"), footprint=ROOM)
    check(SamplingParams(width=512, height=512), info)
    with pytest.raises(TooLarge):
        check(SamplingParams(width=2048, height=1024), info)
    with pytest.raises(TooLarge):
        check(SamplingParams(width=1024, height=768, cfg_scale=3.0), info)


def test_the_engine_tells_what_it_measured_and_refuses_before_it_draws(schnell, monkeypatch):
    small = tune.Tuning(footprint=replace(ROOM, token_bytes=2**24), batch_tokens=1000)
    monkeypatch.setattr("fluxline.engine.engine.tune", lambda *given: small)
    with Engine(schnell) as engine:
        assert engine.models[0].footprint == small.footprint
        assert engine.stats.batch_tokens == 64  # as many as fit, not as many as pay
        with pytest.raises(TooLarge):
            engine.submit(new_request("a fox", params={"width": 256, "height": 256}))
        assert engine.generate("a fox", width=64, height=64, steps=1)
