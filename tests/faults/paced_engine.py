"""A fake engine that takes its time: `tests.faults.paced_engine:open_engine`.

The model's name is how many seconds an evaluation takes, and one picture is drawn at a time: four
evaluations, between which it can be cancelled. The prompts that steer `FakeEngine` steer it, too.
"""

import threading
import time
from collections.abc import Callable

from fluxline.request import CancelledEvent, Event, GenerationRequest, Queued, Started
from tests.worker.fake_engine import FakeEngine

EVALUATIONS = 4


class Paced(FakeEngine):
    """Draws one after another."""

    def __init__(self, evaluation_s: float) -> None:
        super().__init__()
        self._evaluation_s = evaluation_s
        self._device = threading.Lock()
        self._unwanted: set[str] = set()
        self._is_closing = False

    def _draw(self, request: GenerationRequest, publish: Callable[[Event], None]) -> None:
        if request.prompt.startswith("hang"):
            super()._draw(request, publish)
            return
        publish(Queued(request.id))
        with self._device:
            publish(Started(request.id))
            for _ in range(EVALUATIONS * request.count):
                if request.id in self._unwanted:
                    publish(CancelledEvent(request.id))
                if request.id in self._unwanted or self._is_closing:
                    return
                time.sleep(self._evaluation_s)
            super()._draw(request, publish)

    def cancel(self, request_id: str) -> None:
        self._unwanted.add(request_id)
        super().cancel(request_id)

    def close(self) -> None:
        self._is_closing = True
        super().close()


def open_engine(
    model: str, device: str, on_lost: Callable[[], None], precision: str = "auto"
) -> Paced:
    """Open as `fluxline.engine.open_engine` does."""
    return Paced(float(model))
