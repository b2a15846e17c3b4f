"""What a model makes of an asked size, and of parameters left open."""

import pytest

from fluxline.errors import InvalidParams
from fluxline.models.spec import ModelSpec, References
from fluxline.request import SamplingParams


def spec(**changed) -> ModelSpec:
    facts = {
        "name": "test",
        "family": "flux1",
        "native_size": (128, 128),
        "grid": 16,
        "trained_sizes": ((128, 128), (160, 96), (96, 160)),
        "max_side": 2048,
        "default_steps": 4,
        "max_steps": 50,
        "text_length": 24,
        "guidance": None,
    }
    return ModelSpec(**{**facts, **changed})


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ((128, 128), (128, 128)),
        ((512, 512), (128, 128)),
        ((1024, 768), (160, 96)),
        ((1100, 1000), (128, 128)),
        ((1920, 1080), (160, 96)),
        ((300, 700), (96, 160)),
        ((16, 16), (128, 128)),
    ],
)
def test_a_size_is_drawn_at_the_trained_size_of_its_shape(asked, drawn):
    assert spec().drawn_size(*asked) == drawn


@pytest.mark.parametrize(
    ("asked", "drawn"), [((1000, 500), (1008, 512)), ((1024, 1024), (1024, 1024))]
)
def test_a_model_of_any_size_draws_the_next_multiple_of_its_grid(asked, drawn):
    assert spec(trained_sizes=()).drawn_size(*asked) == drawn


def test_resampling_is_told():
    _, warnings = spec().resolve(SamplingParams(width=512, height=512))

    assert warnings == [
        "drawn at 128x128 and resampled to 512x512: test was not trained for that size"
    ]


def test_what_is_cut_off_to_get_another_shape_is_told():
    _, warnings = spec().resolve(SamplingParams(width=512, height=256))

    assert "drawn at 160x96 and cropped and resampled to 512x256" in warnings[0]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (SamplingParams(cfg_scale=0.5), "cfg_scale 0.5 ignored"),
        (SamplingParams(eta=1.0), "eta 1 ignored: only the sampler ddim reads it"),
    ],
)
def test_a_number_without_effect_is_told(params, said):
    assert said in spec().resolve(params)[1][0]


def test_cropping_to_the_asked_size_needs_no_warning():
    assert spec(trained_sizes=()).resolve(SamplingParams(width=1000, height=500))[1] == []


def test_what_is_left_open_becomes_the_models_own():
    params, _ = spec(guidance=3.5).resolve(SamplingParams())

    assert (params.width, params.height, params.steps, params.guidance) == (128, 128, 4, 3.5)


@pytest.mark.parametrize(
    ("asked", "becomes"),
    [
        ({}, 7.5),
        ({"cfg_scale": 1.0}, 1.0),
        ({"guidance": 4.0}, 4.0),
        ({"guidance": 4.0, "cfg_scale": 2.0}, 2.0),
    ],
)
def test_guidance_of_a_model_that_has_only_the_true_one_is_that(asked, becomes):
    params, warnings = spec(cfg_scale=7.5).resolve(SamplingParams(**asked))

    assert (params.cfg_scale, params.guidance, warnings) == (becomes, None, [])


def test_a_model_without_a_scale_of_its_own_is_not_guided():
    assert spec().resolve(SamplingParams())[0].cfg_scale == 1.0
    assert spec(guidance=3.5).resolve(SamplingParams(guidance=2.0))[0].cfg_scale == 1.0


def test_a_negative_prompt_without_effect_is_told():
    _, warnings = spec().resolve(SamplingParams(negative_prompt="ugly"))

    assert any("negative_prompt ignored" in w for w in warnings)


@pytest.mark.parametrize("value", [-1.0, 31.0, float("inf"), float("nan")])
def test_an_impossible_strength_is_refused(value):
    with pytest.raises(InvalidParams, match="cfg_scale must be from 0 to 30"):
        spec().resolve(SamplingParams(cfg_scale=value))


def test_strength_without_a_picture_is_told_and_not_kept():
    params, warnings = spec().resolve(SamplingParams(strength=0.5))
    assert params.strength is None
    assert warnings == ["strength 0.5 ignored: there is no picture to start from"]


def test_a_strength_that_leaves_nothing_of_the_picture_is_told():
    asked = SamplingParams(strength=0.9, steps=8)
    assert "the picture given is not seen" in spec().resolve(asked, (64, 64))[1][0]
    assert spec().resolve(SamplingParams(steps=8), (64, 64))[1] == []


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan")])
def test_a_strength_out_of_range_is_refused(value):
    with pytest.raises(InvalidParams, match="strength must be"):
        spec().resolve(SamplingParams(strength=value), (64, 64))


@pytest.mark.parametrize(
    ("trained", "shape", "asked", "becomes"),
    [
        ((), (4000, 2000), {}, (176, 96)),
        ((), (100, 100), {}, (128, 128)),
        ((), (4000, 2000), {"width": 50}, (50, 32)),
        ((), (4000, 2000), {"height": 64}, (128, 64)),
        ((), (4000, 2000), {"width": 100, "height": 90}, (100, 90)),
        ((), (1, 60_000), {}, (64, 256)),
        (((128, 128), (160, 96), (96, 160)), (4000, 2000), {}, (160, 96)),
        (((128, 128), (160, 96), (96, 160)), (300, 400), {}, (96, 160)),
        (((256, 256), (128, 128)), (300, 300), {}, (128, 128)),
    ],
)
def test_a_size_nobody_asked_for_is_like_the_picture_that_is_given(trained, shape, asked, becomes):
    params, _ = spec(trained_sizes=trained).resolve(SamplingParams(**asked), shape)
    assert (params.width, params.height) == becomes


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, (0, False, False)),
        ({"fills": True}, (0, True, True)),
        ({"references": References(most=4)}, (4, False, False)),
        ({"references": References(most=1, is_needed=True)}, (1, False, True)),
    ],
)
def test_a_model_says_which_pictures_it_takes(facts, said):
    info = spec(**facts).info("cpu", "float32")
    assert (info.references, info.fills, info.needs_picture) == said


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((640, 480), (640, 480)),
        ((650, 490), (640, 480)),
        ((9, 1000), (16, 992)),
        ((1024, 1024), (1024, 1024)),
        ((4000, 2000), (1440, 720)),
    ],
)
def test_a_picture_that_is_looked_at_keeps_its_own_size_up_to_a_cap(shape, size):
    looking = spec(references=References(most=2, fitted="capped"))
    assert looking.reference_size(shape, (128, 128)) == size
    assert looking.reference_tokens([size, size]) == 2 * size[0] * size[1] // 256


def test_a_picture_that_is_drawn_much_smaller_is_not_made_so_silently():
    large, near = (1024, 1024), (spec().native_size[0], spec().native_size[1])

    assert "ask for a size" in spec().resolve(SamplingParams(), large)[1][0]
    assert spec().resolve(SamplingParams(), near)[1] == []
    assert spec().resolve(SamplingParams(width=128, height=128), large)[1] == []
