"""One picture on several ranks, each with a band: what one process makes of it whole."""

import pytest
import torch

from fluxline.models.banded import decoded, encoded
from fluxline.parallel.bands import RankBands
from fluxline.parallel.group import Group
from tests.models.test_banded import assert_close, opened

CASES = [("flux1", 2, 5), ("flux1", 3, 7), ("flux2", 3, 8), ("flux2", 2, 3), ("flux1", 3, 3)]
"""An autoencoder, how many ranks, rows of latents."""


def one_rank(name, ranks, height):
    """What this rank makes of a picture and of latents: both whole, and what it sent."""
    vae = opened(name)
    latents, pictures = inputs(vae, height)
    group = Group(range(ranks))
    picture = decoded(vae.decoder, RankBands.cut(group, latents, 1)).whole()
    return picture, encoded(vae.encoder, RankBands.cut(group, pictures, 8)).whole()


def inputs(vae, height):
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, vae.config.latent_channels, height, 7, generator=generator)
    return latents, torch.rand(2, 3, 8 * height, 56, generator=generator) * 2 - 1


@torch.inference_mode()
@pytest.mark.parametrize(("name", "count", "height"), CASES)
def test_ranks_with_unequal_bands_give_what_one_process_gives(name, count, height, ranks):
    vae = opened(name)
    latents, pictures = inputs(vae, height)
    whole, said = vae.decoder(latents), vae.encoder(pictures)

    for its_picture, its_word in ranks.run(count, one_rank, name, count, height):
        assert_close(its_picture, whole)
        assert_close(its_word, said)


def test_a_picture_of_fewer_rows_than_ranks_is_not_cut(ranks):
    assert ranks.run(3, cut_in, 2) == [None] * 3


def cut_in(height):
    return RankBands.cut(Group(range(3)), torch.zeros(1, 1, height, 4), 1)
