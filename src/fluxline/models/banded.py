"""diffusers' AutoencoderKL and FLUX.2's, gone through in bands of rows: the same numbers in less
memory.

A convolution reads a row of each neighbour, a group norm the sums of all bands, attention the keys
and values of all; the rest looks at no other row. So nothing is approximated, no two bands overlap
and there is no seam. The weights are the modules of diffusers, which stay as they are.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fluxline.errors import LoadError
from fluxline.models.bands import Bands, Halo, LocalBands
from fluxline.models.base import Network
from fluxline.models.glance import glance_of

BAND_PIXELS = 2**16  # of a band at the picture's size: 64 rows of 1024
BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D"}

Rows = Callable[[Tensor], Tensor]
"""What becomes of some rows (R, C, rows, w), whichever they are."""


class BandedVae:
    """An autoencoder that takes small pictures whole and large ones in bands. Thread: the engine's.

    Raises LoadError if it is made of other blocks than FLUX's are.
    """

    def __init__(self, vae: Any) -> None:  # diffusers is untyped
        config = vae.config
        made_of = {*config.down_block_types, *config.up_block_types}
        if made_of != BLOCKS or config.act_fn != "silu":
            known = f"{', '.join(sorted(BLOCKS))} with silu"
            raise LoadError(f"vae/ is made of {', '.join(sorted(made_of))}; known are {known}")
        self._vae = vae
        self._decoder, self._encoder = Decoder(vae.decoder), Encoder(vae.encoder)
        self.shared: Callable[[Tensor, int], Bands | None] = _unshared
        self.scale: int = 2 ** (len(config.block_out_channels) - 1)
        self.whole_pixels = math.inf
        """Of all pictures of a call together that are taken whole."""
        self.band_pixels = BAND_PIXELS

    def networks(self) -> tuple[Network, Network]:
        """What reads pictures, and what draws them."""
        return Network(self._vae, (self._encoder,)), Network(self._vae, (self._decoder,))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (R, 3, height, width) from about -1 to 1, of latents (R, c, h, w)."""
        z = self._read(latents)
        picture: Tensor = self._decoder(z, self.shared(z, 1) or self._cut(z, 1))
        return picture

    def glance(self, latents: Tensor) -> Tensor:
        """The same, small: of averaged latents, and whole, whoever else draws along."""
        picture: Tensor = self._decoder(self._read(glance_of(latents, self.scale)), None)
        return picture

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (R, c, h, w) float32 of pictures: the mean of what the encoder says."""
        bands = self.shared(pictures, self.scale) or self._cut(pictures, self.scale)
        said = self._encoder(pictures, bands)
        if self._vae.quant_conv is not None:
            said = self._vae.quant_conv(said)
        mean: Tensor = said.chunk(2, dim=1)[0]
        return mean.float()

    def _read(self, latents: Tensor) -> Tensor:
        """Latents as the decoder takes them."""
        z = latents.to(self._vae.dtype)
        if self._vae.post_quant_conv is None:
            return z
        quantized: Tensor = self._vae.post_quant_conv(z)
        return quantized

    def _cut(self, x: Tensor, unit: int) -> Bands | None:
        """Bands of whole units of rows, each a row of latents. None: all is taken whole."""
        row_pixels = x.shape[0] * x.shape[3] // unit * self.scale**2
        if x.shape[2] // unit * row_pixels <= self.whole_pixels:
            return None
        return _cut(x, unit * max(1, self.band_pixels // row_pixels))


class Decoder(nn.Module):
    """Latents to pictures, by diffusers' decoder."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, z: Tensor, bands: Bands | None) -> Tensor:
        """(R, c, h, w) to (R, 3, height, width). bands: of it, which are used up."""
        return self.whole(z) if bands is None else decoded(self.whole, bands).whole()


class Encoder(nn.Module):
    """Pictures to what the mean and the spread of their latents are, by diffusers' encoder."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, picture: Tensor, bands: Bands | None) -> Tensor:
        """(R, 3, height, width) to (R, 2 c, h, w). bands: of it, which are used up."""
        if bands is None:
            return self.whole(picture)  # type: ignore[no-any-return]  # diffusers is untyped
        return encoded(self.whole, bands).whole()


def decoded(decoder: Any, bands: Bands) -> Bands:
    """Bands of a picture, of bands of its latents, which are used up."""
    bands = _each_with_halo(bands, partial(_convolved, decoder.conv_in))
    bands = _through_middle(decoder.mid_block, bands)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            bands = _through_resnet(resnet, bands)
        for upsampler in block.upsamplers or ():
            bands = _each_with_halo(bands, partial(_upsampled, upsampler.conv))
    return _given_out(decoder, bands)


def encoded(encoder: Any, bands: Bands) -> Bands:
    """Bands of what is said of latents, of bands of a picture that each fill whole latent rows."""
    bands = _each_with_halo(bands, partial(_convolved, encoder.conv_in))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            bands = _through_resnet(resnet, bands)
        for downsampler in block.downsamplers or ():
            bands = _each_with_halo(bands, partial(_halved, downsampler.conv))
    return _given_out(encoder, _through_middle(encoder.mid_block, bands))


def _through_middle(middle: Any, bands: Bands) -> Bands:
    bands = _through_resnet(middle.resnets[0], bands)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            _attend(attention, bands)
        bands = _through_resnet(resnet, bands)
    return bands


def _through_resnet(block: Any, x: Bands) -> Bands:
    """A residual block. What it gives takes the place of what it reads, band by band."""
    norm = _normed(block.norm1, x)
    inner = _each_with_halo(x, partial(_convolved, block.conv1, before=norm))
    norm = _normed(block.norm2, inner)
    for number, (band, halo) in enumerate(zip(x, inner.with_halo(), strict=True)):
        answer = _convolved(block.conv2, halo, norm)
        answer += band if block.conv_shortcut is None else block.conv_shortcut(band)
        x[number] = answer.div_(block.output_scale_factor)
    return x


def _attend(attention: Any, x: Bands) -> None:
    """Every position attends to all: a band asks at a time, and what is asked is at hand whole."""
    norm = _normed(attention.group_norm, x, then=None)
    keys, values = [], []
    for band in x:
        tokens = norm(band).flatten(2).transpose(1, 2)  # (R, n, C)
        keys.append(attention.to_k(tokens))
        values.append(attention.to_v(tokens))
    k, v = (_heads(x.gather(torch.cat(parts, dim=1)), attention.heads) for parts in (keys, values))
    for number, band in enumerate(x):
        tokens = norm(band).flatten(2).transpose(1, 2)
        q = _heads(attention.to_q(tokens), attention.heads)
        attended = F.scaled_dot_product_attention(q, k, v)  # (R, H, n, C / H)
        answer = attention.to_out[0](attended.transpose(1, 2).flatten(2))
        answer = answer.transpose(1, 2).unflatten(2, band.shape[2:])
        x[number] = (answer + band) / attention.rescale_output_factor


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return rearrange(tokens, "r n (h d) -> r h n d", h=heads)


def _given_out(network: Any, bands: Bands) -> Bands:
    norm = _normed(network.conv_norm_out, bands)
    return _each_with_halo(bands, partial(_convolved, network.conv_out, before=norm))


def _normed(norm: nn.GroupNorm, bands: Bands, then: Callable[..., Tensor] | None = F.silu) -> Rows:
    """The group norm of a whole activation, then an activation function, as a map of its rows.

    Means and variances of bands are made one in float32. Source: Chan, Golub and LeVeque 1983,
    "Algorithms for Computing the Sample Variance".
    """
    parts = []
    for band in bands:
        groups = rearrange(band.float(), "r (g c) h w -> r g c h w", g=norm.num_groups)
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0)
        count = torch.full_like(mean, groups[0, 0].numel())
        parts.append(torch.stack((count, mean, variance)))
    count, mean, variance = torch.stack(parts).unbind(1)  # (bands, R, G)
    total = bands.sum(count.sum(0))
    middle = bands.sum((count * mean).sum(0)) / total
    spread = bands.sum((count * (variance + (mean - middle) ** 2)).sum(0)) / total
    in_group = norm.num_channels // norm.num_groups
    scale = (spread + norm.eps).rsqrt().repeat_interleave(in_group, 1) * norm.weight.float()
    shift = norm.bias.float() - middle.repeat_interleave(in_group, 1) * scale
    scale, shift = scale[:, :, None, None], shift[:, :, None, None]

    def normed(rows: Tensor) -> Tensor:
        answer = (rows.float() * scale).add_(shift)
        return (answer if then is None else then(answer, inplace=True)).to(rows.dtype)

    return normed


def _each_with_halo(bands: Bands, act: Callable[[Halo], Tensor]) -> Bands:
    made = bands.new()
    for halo in bands.with_halo():
        made.append(act(halo))
    return made


def _convolved(conv: Any, halo: Halo, before: Rows | None = None) -> Tensor:
    """A 3 x 3 convolution of a band, of which something is made before. Beyond the picture is
    nought, as the convolution has it, whatever is made of nought."""
    above, _, below = halo
    rows = torch.cat([part for part in halo if part is not None], dim=2)
    rows = rows if before is None else before(rows)
    return _slid(conv, rows, above is None, below is None)


def _upsampled(conv: Any, halo: Halo) -> Tensor:
    """A band with every pixel four times, then convolved: of a neighbour's row one of two."""
    above, _, below = halo
    rows = torch.cat([part for part in halo if part is not None], dim=2)
    rows = F.interpolate(rows, scale_factor=2.0, mode="nearest")
    rows = rows[:, :, 0 if above is None else 1 : None if below is None else -1]
    return _slid(conv, rows, above is None, below is None)


def _slid(conv: Any, rows: Tensor, is_top: bool, is_bottom: bool) -> Tensor:
    if is_top or is_bottom:
        rows = F.pad(rows, (0, 0, int(is_top), int(is_bottom)))
    return F.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))


def _halved(conv: Any, halo: Halo) -> Tensor:
    """A 3 x 3 convolution at every second pixel: it looks to the right and down alone."""
    _, band, below = halo
    rows = band if below is None else torch.cat((band, below), dim=2)
    rows = F.pad(rows, (0, 1, 0, int(below is None)))
    return F.conv2d(rows, conv.weight, conv.bias, stride=2)


def _cut(x: Tensor, rows: int) -> LocalBands:
    """Bands of so many rows. Of a card's, all but what is worked on lie in the machine's memory."""
    home = torch.device("cpu") if x.device.type == "cuda" else x.device
    bands = LocalBands(x.device, home)
    for band in torch.split(x, rows, dim=2):
        bands.append(band)
    return bands


def _unshared(x: Tensor, unit: int) -> None:
    """There is no other rank."""
