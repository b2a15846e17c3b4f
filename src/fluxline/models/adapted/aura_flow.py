"""Fal's AuraFlow: two streams, then one, on a T5 of its own, a flow."""

from collections.abc import Sequence

from torch import Tensor

from fluxline.models.adapted.family import Family, Row, Texts, by_prompt, stacked


class AuraFlow(Family):
    """AuraFlow. Padding is zeros, and is attended to."""

    name = "aura-flow"
    pipelines = ("AuraFlowPipeline",)
    default_steps = 50
    cfg_scale = 3.5
    text_length = 256
    own_spacing = True

    def native_size(self, scale: int) -> tuple[int, int]:
        """A megapixel."""
        return 1024, 1024

    def encode(self, prompts: Sequence[str]) -> list[Texts]:
        """UMT5, padded."""
        text, _, _, _ = self.pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.text_length,
        )
        return by_prompt(text=text)

    def predict(self, x: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """Its velocity."""
        answer: tuple[Tensor] = self.network(
            x,
            encoder_hidden_states=stacked(rows, "text"),
            timestep=timesteps.to(x.dtype),
            return_dict=False,
        )
        return answer[0]

    def timestep(self, sigma: float) -> float:
        """From 1, noise, to 0, picture."""
        return sigma
