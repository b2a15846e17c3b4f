"""PixArt-Sigma: a transformer on T5, of Stable Diffusion XL's latents."""

from collections.abc import Sequence

from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from torch import Tensor

from fluxline.models.adapted.family import Family, Row, Texts, by_prompt, stacked

BINS = {
    32: ASPECT_RATIO_256_BIN,
    64: ASPECT_RATIO_512_BIN,
    128: ASPECT_RATIO_1024_BIN,
    256: ASPECT_RATIO_2048_BIN,
}


class PixArtSigma(Family):
    """PixArt-Sigma. Prompts are read as they are given, not cleaned of what looks like markup."""

    name = "pixart-sigma"
    pipelines = ("PixArtSigmaPipeline",)
    default_steps = 20
    cfg_scale = 4.5
    text_length = 300

    def trained_sizes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of its resolution."""
        shapes = BINS.get(self.network.config.sample_size, {}).values()
        return tuple((int(width), int(height)) for height, width in shapes)

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """T5, with its mask."""
        text, mask, _, _ = self.pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.text_length,
        )
        return by_prompt(text=text, mask=mask)

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its noise, without the variance it learnt beside."""
        answer: tuple[Tensor] = self.network(
            x,
            encoder_hidden_states=stacked(rows, "text"),
            encoder_attention_mask=stacked(rows, "mask"),
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )
        return answer[0].chunk(answer[0].shape[1] // x.shape[1], dim=1)[0]
