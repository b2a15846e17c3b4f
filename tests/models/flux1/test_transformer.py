"""Our transformer against diffusers' on the same weights, in float32."""

import pytest
import torch

from tests.models.flux1.oracle import (
    Inputs,
    diffusers_model,
    evaluate_ours,
    evaluate_theirs,
    ours_from,
    small_config,
)
from tests.models.nearness import relative_l2

TOLERANCE = 1e-5  # float32, different order of summation in fused products

SHAPES = {
    "one square": [(8, 8)],
    "one wide": [(6, 14)],
    "four mixed": [(8, 12), (12, 8), (4, 24), (8, 12)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("guidance", [False, True], ids=["schnell", "dev"])
@pytest.mark.parametrize(("head_dim", "heads"), [(128, 2), (64, 3), (32, 4)])
def test_one_forward_equals_diffusers(shapes, guidance, head_dim, heads):
    config = small_config(guidance=guidance, head_dim=head_dim, heads=heads)
    theirs = diffusers_model(config)
    inputs = Inputs.random(config, shapes)

    ours = evaluate_ours(ours_from(theirs, config), inputs)

    assert relative_l2(ours, evaluate_theirs(theirs, inputs)) <= TOLERANCE


def test_every_input_of_a_row_reaches_its_velocity():
    config = small_config(guidance=True)
    model = ours_from(diffusers_model(config), config)
    inputs = Inputs.random(config, [(8, 8)])
    base = evaluate_ours(model, inputs)

    for changed in (
        {"x": inputs.x + 0.1},
        {"text": inputs.text + 0.1},
        {"pooled": inputs.pooled + 0.1},
        {"sigma": inputs.sigma * 0.9},
        {"guidance": inputs.guidance + 0.5},
        {"ids": [inputs.ids[0].flip(0)]},
    ):
        other = evaluate_ours(model, Inputs(**{**vars(inputs), **changed}))
        assert relative_l2(other, base) > 1e-3, f"{list(changed)} changes nothing"


def test_a_dev_class_model_refuses_to_run_without_guidance():
    config = small_config(guidance=True)
    model = ours_from(diffusers_model(config), config)

    with pytest.raises(ValueError, match="guidance"):
        model.modulate(torch.ones(1), None, torch.zeros(1, config.pooled_dim))
