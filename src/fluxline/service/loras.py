"""LoRAs as the doors know them: what there is, and what acts on every picture that names none.

What an operator applies is written into each request as it is admitted, so that whoever draws it,
or draws it again, draws the same. Lives on one event loop; folders are looked through in threads.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace

from fluxline.ability import ModelInfo, check_loras
from fluxline.errors import ConfigError, InvalidParams, UnknownLora
from fluxline.loras import Hashes, LoraFolder, LoraInfo, hub_name, in_hub_cache
from fluxline.profiles import Profile
from fluxline.request import GenerationRequest, LoraRef, SamplingParams


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
        await asyncio.to_thread(self.look_for, {lora.name})
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

        is_usual = all(picture.params.loras is None for picture in request.pictures())
        plan = tuple(replace(picture, params=fill(picture.params)) for picture in request.plan)
        request = replace(request, params=fill(request.params), plan=plan)
        named = {lora.name for one in request.pictures() for lora in one.params.loras or ()}
        try:
            if named:
                await asyncio.to_thread(self.look_for, named)
        except UnknownLora as exc:
            if not is_usual:
                raise
            message = f"{exc.message}; it acts here on what names none: [] is drawn without"
            raise UnknownLora(message) from exc
        return request

    def look_for(self, names: Iterable[str]) -> None:
        """See that each is there, or to be fetched. Blocks. Raises UnknownLora."""
        for name in sorted(names):
            try:
                self._folder.find(name)
            except UnknownLora:
                wanted = hub_name(name)
                if wanted is None or not (self._fetches or in_hub_cache(wanted)):
                    raise

    def _infos(self) -> list[tuple[LoraInfo, str]]:
        found = []
        for info in self._folder.infos():
            with contextlib.suppress(OSError, ValueError):  # gone since, or not to be read
                found.append((info, self._hashes.of(info.path)))
        return found

    def _preview(self, name: str) -> bytes | None:
        with contextlib.suppress(OSError):  # gone since
            if (preview := self._folder.info(name).preview) is not None:
                return preview.read_bytes()
        return None


def lacks(profile: Profile, loras: Loras) -> list[str]:
    """What is missing of the LoRAs that a profile wears by its settings; it may come yet.

    Raises ConfigError for what never could be worn.
    """
    own = tuple(LoraRef(name, strength) for name, strength in profile.loras.items())
    try:
        check_loras(own)
    except InvalidParams as exc:
        raise ConfigError(f"profile {profile.name}: {exc.message}") from exc
    said = []
    for lora in own:
        try:
            loras.look_for([lora.name])
        except UnknownLora as exc:
            said.append(f"{exc.message}; until it is there, what names no LoRA is refused")
    return said
