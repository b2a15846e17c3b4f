"""Where the time of a request goes, as the spans of a trace, for those who collect them.

Off, every verb here does nothing; `otel` has those that tell. Nobody puts a prompt, a key or the
words of an error into a span.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

Values = Mapping[str, str | int | float | bool]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER = "OTEL_TRACES_EXPORTER"


class Span:
    """A stretch of time. In its `with` it is the open one, and what is logged bears its ids.

    This one belongs to no trace, nor do its children: nothing of it is told.
    """

    is_told = False
    trace_id = ""
    span_id = ""
    traceparent = ""  # by which others can add to it, as W3C spells it

    def child(self, name: str, values: Values | None = None, *, began: float | None = None) -> Self:
        """Begin a part of it, now or when it `began` (seconds since 1970, as all times here)."""
        return self

    def rename(self, name: str) -> None:
        """Call it by what has become known meanwhile."""

    def note(self, values: Values) -> None:
        """Say more of it."""

    def fail(self, code: str) -> None:
        """Say that it went wrong, and by which of a closed set of words."""

    def end(self, at: float | None = None) -> None:
        """End it, once; a second end is none."""

    @contextmanager
    def here(self) -> Iterator[None]:
        """Have it be the open one, and leave its end to others."""
        yield

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None


class Tracing:
    """Begins spans of its own, or adds them to a trace from elsewhere. This one tells nobody."""

    is_on = False

    def answer(self, name: str, headers: Mapping[str, str], values: Values) -> Span:
        """Begin the span of a call from outside, whose headers may name a trace."""
        return SILENT

    def resume(self, name: str, traceparent: str, values: Values, *, began: float) -> Span:
        """Begin the span of work that was asked for earlier, by this process or another."""
        return SILENT

    def close(self) -> None:
        """Tell what is left to tell, in bounded time."""


SILENT, OFF = Span(), Tracing()

open_span_var: ContextVar[Span] = ContextVar("open_span", default=SILENT)
"""The span that whatever happens now is part of; set by the spans themselves."""


def open_span() -> Span:
    """The span that whatever happens now is part of."""
    return open_span_var.get()


def is_wanted(endpoint: str) -> bool:
    """Whether the option or OpenTelemetry's variables ask for traces, and none forbids them."""
    exporter = os.environ.get(EXPORTER, "").strip().lower()
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_disabled or exporter == "none":
        return False
    return bool(endpoint or exporter or any(os.environ.get(name) for name in ENDPOINTS))
