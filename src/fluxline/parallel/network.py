"""The numbers of a network that its cost depends on. Values only: nothing here opens a model."""

from dataclasses import dataclass

MODULATION_DOUBLE, MODULATION_SINGLE = 12, 3
"""Weights of a block's modulation where each has its own, in squares of the width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The half of a VAE that draws."""

    weights: int  # of both halves
    pixel_flops: float
    middle_flops: float  # of a pixel, before it is cut into bands
    attention_width: int  # channels of the attention in its middle; 0: none
    pixel_bytes: float  # that drawing takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A transformer over text and image tokens, and what is beside it.

    The text encoders read once a picture and the VAE draws once; both lie on every rank.
    """

    name: str
    double: int  # blocks of two streams, each with weights of its own
    single: int  # blocks of one stream
    hidden: int  # D
    heads: int
    block_weights: int  # that a token meets in a block, in squares of the width
    is_modulated_by_block: bool  # FLUX.2 has one modulation for all
    other_weights: int  # of the transformer, outside its blocks and their modulation
    encoder_weights: int
    vae: Decoder
    channels: int  # of an image token
    text_tokens: int
    steps: int  # by default
    weight_bytes: float = 2.0  # of the blocks'
    value_bytes: int = 2  # of what is computed, sent and remembered

    @property
    def layers(self) -> int:
        """Blocks, each of which attends once."""
        return self.double + self.single

    def image_tokens(self, width: int, height: int) -> int:
        """N of a picture, in px; a token is 16 px squared."""
        return -(-width // 16) * -(-height // 16)

    @property
    def block_bytes(self) -> tuple[float, ...]:
        """What each block holds, without its modulation."""
        single = self.block_weights * self.hidden**2 * self.weight_bytes
        return (2 * single,) * self.double + (single,) * self.single

    @property
    def modulation_bytes(self) -> tuple[float, ...]:
        """What is held of the modulation for each block."""
        if not self.is_modulated_by_block:
            return (0.0,) * self.layers
        unit = self.hidden**2 * self.value_bytes
        double, single = unit * MODULATION_DOUBLE, unit * MODULATION_SINGLE
        return (double,) * self.double + (single,) * self.single

    @property
    def beside_bytes(self) -> float:
        """Weights outside blocks and modulation: embedders, encoders, VAE."""
        weights = self.other_weights + self.encoder_weights + self.vae.weights
        return float(weights * self.value_bytes)

    @property
    def transformer_bytes(self) -> float:
        """All of the transformer."""
        blocks = sum(self.block_bytes) + sum(self.modulation_bytes)
        return blocks + self.other_weights * self.value_bytes


VAE = Decoder(
    weights=84_000_000,
    pixel_flops=9.46e6,
    middle_flops=0.35e6,
    attention_width=512,
    pixel_bytes=2048,  # four tensors of 256 channels
)
DEV = Network(
    name="FLUX.1-dev",
    double=19,
    single=38,
    hidden=3072,
    heads=24,
    block_weights=12,
    is_modulated_by_block=True,
    other_weights=67_180_000,
    encoder_weights=4_885_000_000,  # T5-XXL's encoder and CLIP-L
    vae=VAE,
    channels=64,
    text_tokens=512,
    steps=28,
)
SCHNELL = Network(
    name="FLUX.1-schnell",
    double=19,
    single=38,
    hidden=3072,
    heads=24,
    block_weights=12,
    is_modulated_by_block=True,
    other_weights=56_950_000,
    encoder_weights=4_885_000_000,
    vae=VAE,
    channels=64,
    text_tokens=256,
    steps=4,
)
KLEIN_4B = Network(
    name="FLUX.2-klein-4B",
    double=5,
    single=20,
    hidden=3072,
    heads=24,
    block_weights=13,
    is_modulated_by_block=False,
    other_weights=195_043_000,
    encoder_weights=4_020_000_000,  # Qwen3-4B
    vae=VAE,
    channels=128,
    text_tokens=512,
    steps=4,
)
KLEIN_9B = Network(
    name="FLUX.2-klein-9B",
    double=8,
    single=24,
    hidden=4096,
    heads=32,
    block_weights=13,
    is_modulated_by_block=False,
    other_weights=354_429_000,
    encoder_weights=8_190_000_000,  # Qwen3-8B
    vae=VAE,
    channels=128,
    text_tokens=512,
    steps=4,
)
DEV_2 = Network(
    name="FLUX.2-dev",
    double=8,
    single=48,
    hidden=6144,
    heads=48,
    block_weights=13,
    is_modulated_by_block=False,
    other_weights=816_332_000,
    encoder_weights=24_000_000_000,  # Mistral Small 3
    vae=VAE,
    channels=128,
    text_tokens=512,
    steps=50,
)
MINI = Network(
    name="mini",
    double=1,
    single=4,
    hidden=256,
    heads=4,
    block_weights=12,
    is_modulated_by_block=True,
    other_weights=612_000,
    encoder_weights=2_230_000,
    vae=Decoder(
        weights=965_000,
        pixel_flops=1.18e5,
        middle_flops=4.6e3,
        attention_width=0,
        pixel_bytes=512,
    ),
    channels=64,
    text_tokens=24,
    steps=8,
    weight_bytes=4,
    value_bytes=4,
)
NETWORKS = {
    "mini": MINI,
    "flux1-schnell": SCHNELL,
    "flux1-dev": DEV,
    "flux1-krea-dev": DEV,
    "flux2-klein-4b": KLEIN_4B,
    "flux2-klein-9b": KLEIN_9B,
    "flux2-dev": DEV_2,
}
"""By the names that models are asked by; those that look at pictures have more tokens, and are not
here."""
