"""LoRAs as the doors know them: what there is, and what acts on every picture that names none.

What an operator applies is written into each request as it is admitted, so that whoever draws it,
or draws it again, draws the same. Lives on one event loop; folders are looked through in threads.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from fluxline.errors import UnknownLora
from fluxline.loras import Hashes, LoraFolder, LoraInfo, is_in_hub_cache
from fluxline.request import GenerationRequest, LoraRef, ModelInfo, SamplingParams, check_loras


class Loras:
    """fetches: the workers fetch from the hub what is named by its id."""

    def __init__(self, folder: LoraFolder, *, fetches: bool = False) -> None:
        self._folder, self._fetches = folder, fetches
        self._hashes = Hashes()
        self.applied: LoraRef | None = None

    async def apply(self, lora: LoraRef) -> None:
        """Let it act on every picture that names no LoRA of its own, from the next request on.

        Raises UnknownLora, InvalidParams.
        """
        check_loras((lora,))
        await asyncio.to_thread(self._find, {lora.name})
        self.applied = lora

    def remove(self) -> None:
        """Let none act any more but those that requests name."""
        self.applied = None

    async def infos(self) -> list[tuple[LoraInfo, str]]:
        """All in the folder, each with its hash: the first time, every file is read once."""
        return await asyncio.to_thread(self._infos)

    async def preview(self, name: str) -> bytes | None:
        """The picture beside a LoRA, if there is one. Raises UnknownLora."""
        return await asyncio.to_thread(self._preview, name)

    async def filled(
        self, request: GenerationRequest, usual: tuple[LoraRef, ...], info: ModelInfo
    ) -> GenerationRequest:
        """The request with the LoRAs that it is drawn with: its own, else what was applied, else
        the usual ones of its profile; none for a model that wears none. Raises UnknownLora.
        """
        if self.applied is not None:
            usual = (self.applied,)
        if not info.wears_loras:
            usual = ()

        def fill(params: SamplingParams) -> SamplingParams:
            return replace(params, loras=usual if params.loras is None else params.loras)

        plan = tuple(replace(picture, params=fill(picture.params)) for picture in request.plan)
        request = replace(request, params=fill(request.params), plan=plan)
        named = {lora.name for one in request.pictures() for lora in one.params.loras or ()}
        if named:
            await asyncio.to_thread(self._find, named)
        return request

    def _find(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            try:
                self._folder.find(name)
            except UnknownLora:
                if not (self._fetches and "/" in name) and not is_in_hub_cache(name):
                    raise

    def _infos(self) -> list[tuple[LoraInfo, str]]:
        return [(info, self._hashes.of(info.path)) for info in self._folder.infos()]

    def _preview(self, name: str) -> bytes | None:
        preview = self._folder.info(name).preview
        return None if preview is None else preview.read_bytes()
