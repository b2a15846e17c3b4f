"""Our transformer against diffusers' on the same weights, in float32."""

from dataclasses import replace

import pytest
import torch
from diffusers import Flux2KleinPipeline

from fluxline.models.flux2.latents import image_ids, pack, reference_ids, text_ids, unpack
from tests.models.flux2.oracle import (
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
    "one square": [(4, 4)],
    "one wide": [(3, 7)],
    "four mixed": [(4, 6), (6, 4), (2, 12), (4, 6)],
}
REFERENCES = {"alone": (), "beside three": ((3, 5), (4, 4), (1, 6))}


@pytest.mark.parametrize("references", REFERENCES.values(), ids=REFERENCES.keys())
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("guidance", [False, True], ids=["klein", "dev"])
@pytest.mark.parametrize(("head_dim", "heads"), [(128, 2), (32, 3)])
def test_one_forward_equals_diffusers(references, shapes, guidance, head_dim, heads):
    config = small_config(guidance=guidance, head_dim=head_dim, heads=heads)
    theirs = diffusers_model(config)
    inputs = Inputs.random(config, shapes, references=references)

    ours = evaluate_ours(ours_from(theirs, config), inputs)

    assert ours.shape == inputs.x.shape
    assert relative_l2(ours, evaluate_theirs(theirs, inputs)) <= TOLERANCE


def test_every_input_of_a_row_reaches_its_velocity():
    config = small_config(guidance=True)
    model = ours_from(diffusers_model(config), config)
    inputs = Inputs.random(config, [(4, 4)], references=((3, 5),))
    base = evaluate_ours(model, inputs)

    for changed in (
        {"x": inputs.x + 0.1},
        {"text": inputs.text + 0.1},
        {"sigma": inputs.sigma * 0.9},
        {"guidance": inputs.guidance + 0.5},
        {"ids": [inputs.ids[0].flip(0)]},
        {"references": inputs.references + 0.1},
    ):
        other = evaluate_ours(model, replace(inputs, **changed))
        assert relative_l2(other, base) > 1e-3, f"{list(changed)} changes nothing"


def test_a_dev_class_model_refuses_to_run_without_guidance():
    config = small_config(guidance=True)
    model = ours_from(diffusers_model(config), config)

    with pytest.raises(ValueError, match="guidance"):
        model.modulate(torch.ones(1), None)


def test_tokens_and_positions_are_those_of_diffusers():
    theirs = Flux2KleinPipeline
    latents = [torch.randn(1, 32, 4, 6), torch.randn(1, 32, 2, 8)]
    packed = [theirs._patchify_latents(latent) for latent in latents]

    for latent, patches in zip(latents, packed, strict=True):
        h, w = patches.shape[2:]
        assert torch.equal(pack(latent), theirs._pack_latents(patches))
        assert torch.equal(unpack(pack(latent), h, w), latent)
        assert torch.equal(image_ids(h, w), theirs._prepare_latent_ids(patches)[0].float())
    assert torch.equal(text_ids(5), theirs._prepare_text_ids(torch.zeros(1, 5, 8))[0].float())
    positions = theirs._prepare_image_ids(packed)[0].float()
    assert torch.equal(reference_ids([(2, 3), (1, 4)]), positions)


@pytest.mark.parametrize("guidance", [False, True], ids=["klein", "dev"])
def test_its_bfloat16_is_no_worse_than_diffusers(guidance):
    config = small_config(guidance=guidance)
    theirs = diffusers_model(config)
    inputs = Inputs.random(config, [(8, 8)], references=((4, 4),))
    exact = evaluate_theirs(theirs, inputs)

    halved = {name: getattr(inputs, name).bfloat16() for name in ("x", "text", "references")}
    less = replace(inputs, **halved)
    ours = relative_l2(evaluate_ours(ours_from(theirs, config).bfloat16(), less), exact)

    assert ours <= 1.2 * relative_l2(evaluate_theirs(theirs.bfloat16(), less), exact)
    assert ours < 0.1
