"""What the service measures of itself, for Prometheus.

Labels come from closed sets alone: no prompt, key or path of a caller ever becomes one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxline.ability import EngineStats
from fluxline.errors import FluxlineError
from fluxline.fleet.on_demand import OnDemand
from fluxline.fleet.router import Router
from fluxline.request import CancelledEvent, Done, Failed, ImageReady, ImageResult, Started
from fluxline.service.feed import Feed, News

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RATIOS = (0.1, 0.25, 0.5, 0.8, 1, 1.25, 2, 4, 10)

TOTALS = {
    "forwards": "forwards of the model",
    "rows": "rows of all forwards; a picture's evaluation is one, two with a negative prompt",
    "tokens": "tokens of all rows",
    "prompts_encoded": "prompts that the text encoders read",
    "prompts_cached": "prompts whose encoding was at hand",
}
LEVELS = {
    "batch_tokens": "tokens that a forward may have now",
    "device_bytes": "memory of the card that tensors hold",
    "device_bytes_reserved": "memory of the card that the process holds",
}


class Meter:
    """Counts what happens to jobs, and reads at every scrape how things stand."""

    def __init__(self, router: Router, waiting: Callable[[], Iterable[Feed]]) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_Standing(router, waiting))
        self._ended = Counter(
            "fluxline_requests", "requests that ended", ["door", "outcome"], registry=registry
        )
        self._refused = Counter(
            "fluxline_rejected", "requests that were refused", ["reason"], registry=registry
        )
        self._cancelled = Counter(
            "fluxline_cancelled", "requests that were cancelled", ["phase"], registry=registry
        )
        self._images = Counter(
            "fluxline_images", "pictures", ["model", "backend"], registry=registry
        )
        self._megapixels = Counter(
            "fluxline_image_megapixels",
            "size of all pictures",
            ["model", "backend"],
            registry=registry,
        )
        self._took = Histogram(
            "fluxline_request_seconds",
            "from acceptance to the end",
            ["door"],
            buckets=SECONDS,
            registry=registry,
        )
        self._waited = Histogram(
            "fluxline_queue_wait_seconds",
            "from acceptance to the first evaluation",
            buckets=SECONDS,
            registry=registry,
        )
        self._stage = Histogram(
            "fluxline_stage_seconds",
            "of one picture",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._foreseen = Histogram(
            "fluxline_prediction_ratio",
            "real over predicted seconds of a finished request",
            buckets=RATIOS,
            registry=registry,
        )

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)

    def refuse(self, error: FluxlineError) -> None:
        """Count a request that was not accepted."""
        self._refused.labels(error.code).inc()

    def observe(self, feed: Feed, news: News) -> None:
        """Count what happened to a job."""
        match news:
            case Started():
                self._waited.observe(feed.age_s)
            case ImageReady(image=image):
                self._picture(image)
            case Done():
                self._end(feed, "done")
                if feed.predicted_s:
                    self._foreseen.observe(feed.age_s / feed.predicted_s)
            case CancelledEvent():
                self._end(feed, "cancelled")
                self._cancelled.labels("running" if feed.has_started else "waiting").inc()
            case Failed() | FluxlineError():
                self._end(feed, "failed")

    def _picture(self, image: ImageResult) -> None:
        self._images.labels(image.model, image.backend).inc()
        self._megapixels.labels(image.model, image.backend).inc(image.width * image.height / 1e6)
        for stage, took_s in image.timings_s.items():
            self._stage.labels(stage).observe(took_s)

    def _end(self, feed: Feed, outcome: str) -> None:
        self._ended.labels(feed.door, outcome).inc()
        self._took.labels(feed.door).observe(feed.age_s)


class _Standing(Collector):
    """What is read when somebody asks."""

    def __init__(self, router: Router, open_feeds: Callable[[], Iterable[Feed]]) -> None:
        self._router, self._open = router, open_feeds

    def collect(self) -> Iterator[Metric]:
        """Read it."""
        feeds = list(self._open())
        waiting = [feed for feed in feeds if not feed.has_started]
        oldest_s = max((feed.age_s for feed in waiting), default=0.0)
        work = sum(feed.cost for feed in feeds)
        for name, text, value in (
            ("queue_depth", "requests of which no picture has begun", len(waiting)),
            ("queue_oldest_seconds", "how long the oldest of them waits", oldest_s),
            ("queue_cost", "work accepted and not done, in pixels x evaluations", work),
            ("jobs_running", "requests of which a picture has begun", len(feeds) - len(waiting)),
            ("replicas_ready", "engines that can be given work", self._router.ready),
        ):
            yield GaugeMetricFamily(f"fluxline_{name}", text, value)
        for name, text, of in (
            ("profile_replicas", "engines of a profile that can be given work", _loaded),
            ("profile_bytes", "memory that a profile takes, as was said or measured", _held_bytes),
        ):
            level = GaugeMetricFamily(f"fluxline_{name}", text, labels=["profile"])
            for one in self._router:
                level.add_metric([one.name], of(one))
            yield level
        restarts = self._router.restarts
        yield CounterMetricFamily("fluxline_worker_restarts", "workers started again", restarts)
        yield from _engines(
            [([one.name, str(k)], told) for one in self._router for k, told in enumerate(one.stats)]
        )


def _loaded(one: OnDemand) -> int:
    return one.loaded


def _held_bytes(one: OnDemand) -> int:
    return one.held_bytes


def _engines(engines: Sequence[tuple[list[str], EngineStats]]) -> Iterator[Metric]:
    """What the engines say; of each its profile and its number there, and what it says."""
    for name, text in TOTALS.items():
        total = CounterMetricFamily(f"fluxline_engine_{name}", text, labels=["profile", "replica"])
        for whose, stats in engines:
            total.add_metric(whose, getattr(stats, name))
        yield total
    seconds = CounterMetricFamily(
        "fluxline_engine_evaluated_seconds", "time in forwards", labels=["profile", "replica"]
    )
    for whose, stats in engines:
        seconds.add_metric(whose, stats.evaluated_s)
    yield seconds
    for name, text in LEVELS.items():
        level = GaugeMetricFamily(f"fluxline_engine_{name}", text, labels=["profile", "replica"])
        for whose, stats in engines:
            level.add_metric(whose, getattr(stats, name))
        yield level
