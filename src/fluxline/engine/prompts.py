"""What a model made of the words that jobs give it: shared by jobs, kept while there is room."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from fluxline.engine.cache import ByteLRU
from fluxline.engine.job import Job
from fluxline.engine.seen import Seen
from fluxline.engine.tally import Tally
from fluxline.linear.lora import AdapterBank, Mix
from fluxline.models.base import DiffusionModel, Stage
from fluxline.models.conditioning import Conditioning

CONDITIONING_BYTES = 256 * 2**20  # 60 prompts of FLUX.1 dev; thousands of the embedded model

Asked = tuple[str, Mix]
"""A text, and the adapters that it is encoded with."""


class Prompts:
    """Thread: the engine's. bank: what acts where a model reads. seen: what it looks at beside.

    Contexts are those of rows in flight, however large they are.
    """

    def __init__(
        self, model: DiffusionModel[Any], bank: AdapterBank, seen: Seen, tally: Tally
    ) -> None:
        self._model, self._bank, self._seen, self._tally = model, bank, seen, tally
        self._conditioning: ByteLRU[Conditioning] = ByteLRU(CONDITIONING_BYTES)
        self._contexts: WeakValueDictionary[Any, Any] = WeakValueDictionary()

    def conditioning(self, jobs: Sequence[Job]) -> dict[Asked, Conditioning]:
        """What the rows of jobs are told; each distinct text is encoded once, in one batch."""
        texts = [asked for job in jobs for asked in asked_of(job)]
        found = {asked: self._conditioning.get(_key(asked)) for asked in texts}
        if new := [asked for asked, known in found.items() if known is None]:
            with self._bank.rows([mix for _, mix in new]):
                encoded = self._model.encode([text for text, _ in new])
            for asked, made in zip(new, encoded, strict=True):
                self._conditioning.put(_key(asked), made)
                found[asked] = made
        self._tally.prompts(encoded=len(new), cached=len(found) - len(new))
        return {asked: known for asked, known in found.items() if known is not None}

    def context(
        self, asked: Asked, conditioning: Conditioning, job: Job, sigmas: tuple[float, ...]
    ) -> Any:
        """What a row needs in all evaluations; rows in flight that need the same share it."""
        mix = acting(job, "context")
        beside = self._seen.name_of_guide(job)
        key = (_key(asked), _named(mix), job.drawn, job.params.guidance, sigmas, beside)
        context = self._contexts.get(key)
        if context is None:
            width, height = job.drawn
            guide = self._seen.guide(job)
            with self._bank.rows([mix]):
                context = self._model.context(
                    conditioning,
                    width=width,
                    height=height,
                    guidance=job.params.guidance,
                    sigmas=sigmas,
                    guide=guide,
                )
            self._contexts[key] = context
        return context


def asked_of(job: Job) -> tuple[Asked, ...]:
    """What a job's rows are told, the negative prompt's second."""
    mix = acting(job, "encode")
    texts = (job.request.prompt, job.params.negative_prompt)
    return tuple((text, mix) for text in texts[: job.rows])


def acting(job: Job, stage: Stage) -> Mix:
    """Those of a job's adapters that do something in a stage."""
    return tuple((adapter, s) for adapter, s in job.mix if stage in adapter.stages)


def _key(asked: Asked) -> str:
    text, mix = asked
    return repr((text, _named(mix)))


def _named(mix: Mix) -> tuple[tuple[str, float], ...]:
    """Adapters by what they are: which objects they are may differ from rank to rank."""
    return tuple((adapter.digest, strength) for adapter, strength in mix)
