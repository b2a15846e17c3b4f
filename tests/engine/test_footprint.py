"""What a picture needs is known before it is drawn: held against real peaks."""

from dataclasses import replace

import pytest
import torch

from fluxline.engine import Engine, tune
from fluxline.engine.peak import free_bytes, peak_of
from fluxline.engine.ticket import new_request
from fluxline.errors import TooLarge
from fluxline.request import Footprint, SamplingParams, check

ROOM = Footprint(
    free_bytes=2**30,
    token_bytes=2**18,
    pixel_bytes=512,
    token_s=1e-5,
    pair_s=1e-8,
    pixel_s=1e-7,
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


def test_doors_refuse_by_the_same_numbers(schnell):
    info = replace(schnell.spec.info("cpu", "float32"), footprint=ROOM)
    check(SamplingParams(width=512, height=512), info)
    with pytest.raises(TooLarge):
        check(SamplingParams(width=2048, height=1024), info)
    with pytest.raises(TooLarge):
        check(SamplingParams(width=1024, height=768, cfg_scale=3.0), info)


def test_the_engine_tells_what_it_measured_and_refuses_before_it_draws(schnell, monkeypatch):
    small = tune.Tuning(footprint=replace(ROOM, token_bytes=2**24), batch_tokens=1000)
    monkeypatch.setattr("fluxline.engine.engine.tune", lambda model: small)
    with Engine(schnell) as engine:
        assert engine.models[0].footprint == small.footprint
        assert engine.stats.batch_tokens == 64  # as many as fit, not as many as pay
        with pytest.raises(TooLarge):
            engine.submit(new_request("a fox", params={"width": 256, "height": 256}))
        assert engine.generate("a fox", width=64, height=64, steps=1)


def test_seconds_grow_with_tokens_and_with_their_square():
    alone = ROOM.seconds(row_tokens=1000, rows=1, evaluations=1, pixels=0)
    assert alone == pytest.approx(1000 * 1e-5 + 1e6 * 1e-8)
    both = ROOM.seconds(row_tokens=1000, rows=2, evaluations=4, pixels=10**6)
    assert both == pytest.approx(8 * alone + 0.1)
