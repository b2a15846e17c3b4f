"""Pictures in bands of rows: the numbers of the whole, in less memory."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2

from fluxline.engine.peak import peak_of
from fluxline.errors import LoadError
from fluxline.models.banded import BandedVae
from fluxline.models.bands import LocalBands
from fluxline.models.base import to_uint8
from tests.cards import Cards, card_of

CPU = torch.device("cpu")
WIDTHS = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
KL = {
    "latent_channels": 16,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    **WIDTHS,
}
VAES = {
    "flux1": lambda: AutoencoderKL(**KL, use_quant_conv=False, use_post_quant_conv=False),
    "flux1 as embedded": lambda: AutoencoderKL(**KL, mid_block_add_attention=False),
    "flux2": lambda: AutoencoderKLFlux2(latent_channels=32, **WIDTHS),
}


def opened(name):
    torch.manual_seed(0)
    vae = VAES[name]().eval().to(memory_format=torch.channels_last)
    for part, parameter in vae.named_parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            mean, spread = (1, 0.3) if "norm" in part and part.endswith("weight") else (0, 0.1)
            torch.nn.init.normal_(parameter, mean, spread)
    return vae


def assert_close(one, other):
    assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize(("h", "w"), [(11, 7), (8, 8), (2, 5)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 10])
def test_bands_of_any_height_give_what_the_whole_gives(name, h, w, rows):
    vae = opened(name)
    banded = BandedVae(vae)
    latents = 2 * torch.randn(2, vae.config.latent_channels, h, w) + 0.7
    pictures = torch.rand(2, 3, 8 * h, 8 * w) * 2 - 1
    decoded = vae.decode(latents, return_dict=False)[0]
    encoded = vae.encode(pictures).latent_dist.mode()
    assert torch.equal(banded.decode(latents), decoded)
    assert torch.equal(banded.encode(pictures), encoded)
    banded.whole_pixels, banded.band_pixels = 0, rows * 2 * w * 64
    in_bands = banded.decode(latents)
    assert_close(in_bands, decoded)
    assert (to_uint8(in_bands).int() - to_uint8(decoded).int()).abs().max() <= 1
    assert_close(banded.encode(pictures), encoded)


@torch.inference_mode()
def test_in_bfloat16_bands_are_as_near_to_float32_as_the_whole():
    latents = torch.randn(1, 16, 12, 8)
    exact = opened("flux1").decode(latents, return_dict=False)[0]
    vae = opened("flux1").bfloat16()
    banded = BandedVae(vae)
    whole = (banded.decode(latents) - exact).abs().mean()
    banded.whole_pixels, banded.band_pixels = 0, 8 * 64
    assert (banded.decode(latents) - exact).abs().mean() <= 1.2 * whole


@torch.inference_mode()
@pytest.mark.parametrize("name", VAES)
def test_where_digits_are_lost_bands_lose_no_more_than_the_whole(name):
    """Means far from nought, and noise that a norm makes large: against float64."""
    vae = opened(name)
    for parameter in vae.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    latents = 2 * torch.randn(1, vae.config.latent_channels, 11, 7) + 5
    banded = BandedVae(vae)
    whole = banded.decode(latents)
    banded.whole_pixels, banded.band_pixels = 0, 3 * 7 * 64
    in_bands = banded.decode(latents)
    exact = vae.double().decode(latents.double(), return_dict=False)[0]
    assert (in_bands - exact).abs().max() <= 1.2 * (whole - exact).abs().max()


@torch.inference_mode()
def test_only_what_is_larger_than_may_be_taken_whole_is_taken_in_bands():
    banded = BandedVae(opened("flux1"))
    banded.whole_pixels = 2 * 64 * 64
    told = []

    def tell(_, args):
        told.append(args[1] and next(iter(args[1])).shape[2])

    banded.networks()[1].units[0].register_forward_pre_hook(tell)
    banded.band_pixels = 3 * 72 * 8
    for shape in [(2, 16, 8, 8), (3, 16, 8, 8), (1, 16, 16, 9), (1, 16, 8, 40)]:
        banded.decode(torch.zeros(shape))
    assert told == [None, 1, 3, 1]


@torch.inference_mode()
@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize(
    ("h", "w", "small"), [(128, 64, (16, 8)), (8, 16, (8, 16)), (2, 300, (1, 16))]
)
def test_a_glance_is_a_decoding_of_averages_of_128_px_and_of_no_bands(name, h, w, small):
    vae = opened(name)
    banded = BandedVae(vae)
    banded.whole_pixels = 0
    banded.shared = None  # other ranks have no part in it
    latents = torch.randn(2, vae.config.latent_channels, h, w)
    means = torch.nn.functional.adaptive_avg_pool2d(latents, small)
    assert_close(banded.glance(latents), vae.decode(means, return_dict=False)[0])


@torch.inference_mode()
def test_bands_take_less_memory():
    banded = BandedVae(opened("flux1"))
    latents = torch.randn(1, 16, 32, 32)
    with peak_of(CPU) as whole:
        banded.decode(latents)
    banded.whole_pixels, banded.band_pixels = 0, 16 * 256
    with peak_of(CPU) as in_bands:
        banded.decode(latents)
    assert in_bands.bytes < 0.6 * whole.bytes


@torch.inference_mode()
@pytest.mark.parametrize("name", ["flux1", "flux2"])
def test_of_a_card_all_bands_but_one_lie_in_the_memory_of_the_machine(name):
    """One that is not there, but raises where what lies on it meets what does not."""
    card = torch.device("cuda", 0)
    vae = opened(name)
    latents = torch.randn(1, vae.config.latent_channels, 9, 5)
    expected = BandedVae(vae).decode(latents)
    with Cards():
        banded = BandedVae(vae.to(card))
        banded.whole_pixels, banded.band_pixels = 0, 4 * 5 * 64
        drawn = banded.decode(latents.to(card))
        assert card_of(drawn) == card
        bands = LocalBands(card, CPU)
        bands.append(latents.to(card))
        assert card_of(bands._bands[0]) == CPU
        assert card_of(next(iter(bands))) == card
    assert_close(drawn, expected)


def test_an_autoencoder_of_other_blocks_is_refused():
    with pytest.raises(LoadError, match="vae/ is made of AttnUpDecoderBlock2D, DownEncoder"):
        BandedVae(AutoencoderKL(**{**KL, "up_block_types": ("AttnUpDecoderBlock2D",) * 4}))
