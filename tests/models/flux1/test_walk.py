"""FLUX.1 walked in part: the same velocity, and no walk with pictures beside the noise."""

import pytest
import torch

from fluxline.models.base import Walkable
from fluxline.models.flux1.guide import FluxGuide
from tests.models.walked import rows_of, walked


@torch.inference_mode()
@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_a_walk_in_stages_gives_what_evaluate_gives(name, request):
    model = request.getfixturevalue(name)
    x, contexts = rows_of(model, ["a fox", "rain"])
    assert isinstance(model, Walkable)
    whole = model.evaluate(x, [0.4, 0.4], contexts)

    assert torch.allclose(walked(model, x, 0.4, contexts), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beside", ["channels", "tokens"])
def test_pictures_beside_the_noise_are_not_walked_with(beside, schnell):
    shown = torch.zeros(32, schnell.transformer.config.in_channels)
    sizes = ((4, 8),) if beside == "tokens" else ()
    _, contexts = rows_of(schnell, [""], guide=FluxGuide(**{beside: shown}, sizes=sizes))

    assert schnell.told(contexts) is None
