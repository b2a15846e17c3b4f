"""FLUX.2 walked in part: the same velocity, and no walk with pictures to draw after."""

import pytest
import torch

from fluxline.models.base import Walkable
from fluxline.models.flux2.model import Flux2Guide
from tests.models.walked import rows_of, walked


@torch.inference_mode()
@pytest.mark.parametrize("name", ["klein", "dev"])
def test_a_walk_in_stages_gives_what_evaluate_gives(name, models):
    model = models[name]
    x, contexts = rows_of(model, ["a fox", "rain"])
    assert isinstance(model, Walkable)
    whole = model.evaluate(x, [0.4, 0.4], contexts)

    assert torch.allclose(walked(model, x, 0.4, contexts), whole, rtol=1e-5, atol=1e-5)


def test_pictures_to_draw_after_are_not_walked_with(models):
    model = models["klein"]
    guide = Flux2Guide(torch.zeros(8, model.transformer.config.in_channels), ((2, 4),))
    _, contexts = rows_of(model, [""], guide=guide)

    assert model.told(contexts) is None
