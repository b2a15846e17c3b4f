"""Logging: one line per happening, as text or JSON, with the id of the request it belongs to.

What is logged never holds a prompt or a picture: whoever logs names the request by its id.
"""

import contextvars
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

from fluxline.tracing import open_span

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

request_id_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The request now being served; set by the front door, read by every log line."""


def configure_logging(level: LogLevel, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send the log of this process to a stream (standard error), in place of what was set up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Their information lines tell of every connection and say nothing that ours do not.
    for chatty in ("uvicorn", "asyncio", "httpx"):
        logging.getLogger(chatty).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    # Theirs hold what was asked and what was drawn: not even for debugging.
    for telltale in ("mcp", "sse_starlette"):
        logging.getLogger(telltale).setLevel(logging.WARNING)


class _TextFormatter(logging.Formatter):
    """`12:00:00.123 info fluxline.fleet.local [req_ab12] worker is ready`."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        request_id = request_id_var.get()
        marked = f" [{request_id}]" if request_id else ""
        head = f"{when} {record.levelname.lower()} {record.name}{marked}"
        return "\n".join([f"{head} {record.getMessage()}", *_traceback(self, record)])


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then what there is of request_id,
    trace_id, span_id and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := request_id_var.get():
            line["request_id"] = request_id
        if (span := open_span()).is_told:
            line |= {"trace_id": span.trace_id, "span_id": span.span_id}
        if lines := _traceback(self, record):
            line["traceback"] = "\n".join(lines)
        return json.dumps(line, ensure_ascii=False)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    return [formatter.formatException(record.exc_info)] if record.exc_info else []
