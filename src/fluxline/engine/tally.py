"""What an engine has done, counted. Written on the engine's thread, read on any."""

from dataclasses import dataclass

import psutil
import torch

from fluxline.ability import EngineStats


@dataclass(slots=True)
class Tally:
    """Running totals since the engine was opened."""

    forwards: int = 0
    rows: int = 0
    tokens: int = 0
    evaluated_s: float = 0.0
    prompts_encoded: int = 0
    prompts_cached: int = 0

    def forward(self, *, rows: int, tokens: int) -> None:
        """Count one forward."""
        self.forwards += 1
        self.rows += rows
        self.tokens += tokens

    def prompts(self, *, encoded: int, cached: int) -> None:
        """Count prompts that were needed."""
        self.prompts_encoded += encoded
        self.prompts_cached += cached

    def stats(self, device: torch.device, batch_tokens: int) -> EngineStats:
        """The totals as they travel."""
        is_cuda = device.type == "cuda"
        return EngineStats(
            forwards=self.forwards,
            rows=self.rows,
            tokens=self.tokens,
            evaluated_s=self.evaluated_s,
            prompts_encoded=self.prompts_encoded,
            prompts_cached=self.prompts_cached,
            batch_tokens=batch_tokens,
            device_bytes=torch.cuda.memory_allocated(device) if is_cuda else 0,
            device_bytes_reserved=torch.cuda.memory_reserved(device) if is_cuda else 0,
            process_bytes=psutil.Process().memory_info().rss,
        )
