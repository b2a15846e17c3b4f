"""NVIDIA's Sana: linear attention on Gemma 2, latents of 32 px a position, a flow."""

import inspect
from collections.abc import Sequence

from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor

from fluxline.models.adapted.family import Family, Row, Texts, stacked

BINS = {
    16: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_4096_BIN,
}


class Sana(Family):
    """Sana and Sana 1.5."""

    name = "sana"
    pipelines = ("SanaPipeline",)
    patch = 1
    default_steps = 20
    cfg_scale = 4.5
    text_length = 300
    draws_float32 = True

    def trained_sizes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of its resolution."""
        shapes = BINS.get(self.network.config.sample_size, {}).values()
        return tuple((int(width), int(height)) for height, width in shapes)

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """Gemma 2, with its mask. A prompt stands behind the instruction to enhance it, an empty
        one alone, as the pipeline has it for the negative.
        """
        called = inspect.signature(type(self.pipe).__call__).parameters
        instruction = called["complex_human_instruction"].default
        return [self._encoded(prompt, instruction if prompt else None) for prompt in prompts]

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its velocity."""
        answer: tuple[Tensor] = self.network(
            x,
            encoder_hidden_states=stacked(rows, "text"),
            encoder_attention_mask=stacked(rows, "mask"),
            timestep=timesteps * self.network.config.timestep_scale,
            return_dict=False,
        )
        return answer[0].chunk(answer[0].shape[1] // x.shape[1], dim=1)[0]

    def timestep(self, sigma: float) -> float:
        """Whole numbers, cut, where the model comes with a DPM-Solver, which tells it those."""
        timestep = 1000 * sigma
        return (
            float(int(timestep)) if self.pipe.scheduler.config.get("use_flow_sigmas") else timestep
        )

    def _encoded(self, prompt: str, instruction: list[str] | None) -> Texts:
        text, mask, _, _ = self.pipe.encode_prompt(
            prompt,
            False,
            device=self.device,
            max_sequence_length=self.text_length,
            complex_human_instruction=instruction,
        )
        return {"text": text[0].to(self.dtype), "mask": mask[0]}
