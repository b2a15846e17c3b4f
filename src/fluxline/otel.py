"""The spans of `tracing`, told by OpenTelemetry: the one file that imports it, and only if wanted.

The SDK collects spans and sends them from a thread of its own: a collector that is slow or away
costs spans and never a request. OpenTelemetry's own variables say the rest.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from types import TracebackType

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fluxline.errors import ConfigError, FluxlineError
from fluxline.tracing import EXPORTER, Span, Tracing, Values, open_span_var

CLOSE_S = 3.0  # for the last spans to leave
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
COMPLAINERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
)
COMPLAINT_S = 60.0  # between two lines of each

_log = logging.getLogger(__name__)


def open_tracing(endpoint: str) -> Tracing:
    """Tell spans to a collector, where the variables say if the endpoint is empty.

    Raises ConfigError.
    """
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"otlp_endpoint must begin with http:// or https://; got {endpoint}")
    kind = os.environ.get(EXPORTER, "").strip().lower() or "otlp"
    if kind != "otlp":
        raise ConfigError(f"{EXPORTER} must be otlp or none; got {kind}")
    try:
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_exporter(endpoint)))
    except ValueError as exc:
        raise ConfigError(f"an OTEL_* variable cannot be read: {exc}") from exc
    for name in COMPLAINERS:
        logging.getLogger(name).addFilter(_Seldom())
    return Otel(provider)


class Otel(Tracing):
    """Traces that are told. Thread: any."""

    is_on = True

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("fluxline", version("fluxline"))

    def answer(self, name: str, headers: Mapping[str, str], values: Values) -> Span:
        """Begin the span of a call from outside, whose headers may name a trace."""
        context = propagate.extract(headers, Context())
        kind = trace.SpanKind.SERVER
        begun = self._tracer.start_span(name, context, kind=kind, attributes=values)
        return _Told(self._tracer, begun)

    def resume(self, name: str, traceparent: str, values: Values, *, began: float) -> Span:
        """Begin the span of work that was asked for earlier, by this process or another."""
        carried = {"traceparent": traceparent}
        context = TraceContextTextMapPropagator().extract(carried, Context())
        start = _ns(began)
        begun = self._tracer.start_span(name, context, attributes=values, start_time=start)
        return _Told(self._tracer, begun)

    def close(self) -> None:
        """Tell what is left to tell, in bounded time."""
        # Not a thread that Python waits for at its end: the SDK would wait for half a minute.
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(CLOSE_S)
        if flushing.is_alive():
            _log.warning("the collector of traces does not answer; the last spans are lost")


class _Told(Span):
    """A span that is told when it has ended."""

    is_told = True

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer, self._span = tracer, span
        self._outer: Span | None = None
        ids = span.get_span_context()
        self.trace_id = trace.format_trace_id(ids.trace_id)
        self.span_id = trace.format_span_id(ids.span_id)
        self.traceparent = f"00-{self.trace_id}-{self.span_id}-{ids.trace_flags:02x}"

    def child(
        self, name: str, values: Values | None = None, *, began: float | None = None
    ) -> "_Told":
        context = trace.set_span_in_context(self._span, Context())
        start = None if began is None else _ns(began)
        begun = self._tracer.start_span(name, context, attributes=values, start_time=start)
        return _Told(self._tracer, begun)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def note(self, values: Values) -> None:
        self._span.set_attributes(values)

    def fail(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(trace.StatusCode.ERROR)

    def end(self, at: float | None = None) -> None:
        if self._span.is_recording():
            self._span.end(None if at is None else _ns(at))

    @contextmanager
    def here(self) -> Iterator[None]:
        outer = open_span_var.get()
        open_span_var.set(self)
        try:
            yield
        finally:
            # No token: a stream that is given up is closed in another context than it began in.
            open_span_var.set(outer)

    def __enter__(self) -> "_Told":
        self._outer = open_span_var.get()
        open_span_var.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._outer is not None:
            open_span_var.set(self._outer)
        if isinstance(exc, FluxlineError):
            self.fail(exc.code)
        elif isinstance(exc, asyncio.CancelledError):
            self.fail("cancelled")
        elif kind is not None:
            self.fail(kind.__name__)  # not its words: they may hold anything
        self.end()


class _Seldom(logging.Filter):
    """Lets a line through now and then: who is away for a day would fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._not_before = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._not_before:
            return False
        self._not_before = now + COMPLAINT_S
        return True


def _resource() -> Resource:
    """Who tells: what the variables say, our name where they say none."""
    ours = {"service.name": "fluxline", "service.version": version("fluxline")}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _exporter(endpoint: str) -> SpanExporter:
    protocol = next((p for name in PROTOCOLS if (p := os.environ.get(name))), "http/protobuf")
    if protocol == "http/protobuf":
        return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint or None)
    raise ConfigError(f"the protocol of OTLP must be http/protobuf or grpc; got {protocol}")


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
