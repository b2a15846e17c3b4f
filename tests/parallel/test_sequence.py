"""A sequence cut over many ranks gives what one rank gives."""

import pytest
import torch

from fluxline.degrees import degrees_of
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.sequence import SplitTransformer

CONFIG = FluxConfig(
    in_channels=8, out_channels=8, depth_double=2, depth_single=3, head_dim=16, heads=3,
    text_dim=12, pooled_dim=10, guidance=True, axes=(4, 6, 6),
)  # fmt: skip


def transformer():
    torch.manual_seed(0)
    return FluxTransformer(CONFIG).eval()


def forward(model, run, rows, text, image):
    """A forward of random rows, as `run` runs it."""
    generator = torch.Generator().manual_seed(rows + text + image)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    ids = torch.randint(0, 9, (rows, text + image, 3), generator=generator).float()
    words = model.embed_text(noise(rows, text, CONFIG.text_dim))
    sigma, guidance = torch.rand(rows, generator=generator), torch.full((rows,), 3.5)
    vectors = model.modulate(sigma, guidance, noise(rows, CONFIG.pooled_dim))
    return run(noise(rows, image, CONFIG.in_channels), words, vectors, model.rope(ids))


def split(parallel, *shape):
    model = transformer()
    mesh = Mesh.join(degrees_of(parallel))
    answer = forward(model, SplitTransformer(model, mesh), *shape)
    return answer, mesh.traffic.bytes


@pytest.mark.parametrize("shape", [(1, 8, 16), (2, 7, 29), (1, 1, 2)])
@pytest.mark.parametrize(
    "parallel", ["ulysses=2", "ulysses=3", "ulysses=4", "ring=2", "ring=3", "ulysses=2,ring=2"]
)
def test_a_split_sequence_gives_what_a_whole_one_gives(parallel, shape, ranks):
    model = transformer()
    with torch.inference_mode():
        whole = forward(model, model, *shape)

    for answer, _ in ranks.run(degrees_of(parallel).ranks, split, parallel, *shape):
        assert (answer - whole).abs().max() <= 1e-5 * whole.abs().max()
