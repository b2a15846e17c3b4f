"""Every exception Fluxline raises on purpose, and who may see it.

::

    FluxlineError
    ├ RequestError          the caller's fault                        HTTP 4xx
    │ ├ InvalidParams         a field is wrong: names it
    │ ├ UnknownModel          no such model here
    │ ├ TooLarge              never fits into the memory: says how much would
    │ ├ UnknownLora           no such adapter here
    │ └ UnsupportedFormat     a picture format nobody here writes
    ├ CapacityError         not now; says when to come again          HTTP 429 / 503 / 504
    │ ├ QueueFull
    │ ├ NotReady              the model is still loading
    │ │ └ DatabaseDown          the database of the jobs does not answer
    │ └ DeadlineExceeded
    ├ LoadError             cannot start                              exit code 2
    │ ├ CheckpointMismatch    tensors missing, unexpected or misshapen
    │ └ ConfigError
    ├ EngineError           our fault                                 HTTP 500 / 503
    │ ├ OutOfMemory
    │ ├ DeviceLost            nothing on the device works any more
    │ ├ NotFinite             the model answered NaN or infinity
    │ ├ StorageError          a picture could not be stored or read
    │ └ WorkerDied
    └ Cancelled             asked for by the caller; not a failure

A message says what was wrong, what was given and what would be right. It is shown to the
caller as it stands, so it never carries a path, an address or a traceback.
"""

from collections.abc import Mapping, Sequence

__all__ = [
    "FluxlineError",
    "RequestError",
    "InvalidParams",
    "UnknownModel",
    "TooLarge",
    "UnknownLora",
    "UnsupportedFormat",
    "CapacityError",
    "QueueFull",
    "NotReady",
    "DatabaseDown",
    "DeadlineExceeded",
    "LoadError",
    "CheckpointMismatch",
    "ConfigError",
    "EngineError",
    "OutOfMemory",
    "DeviceLost",
    "NotFinite",
    "StorageError",
    "WorkerDied",
    "Cancelled",
    "error_of",
]


class FluxlineError(Exception):
    """Root of the tree. `code` is the stable machine-readable name of the error."""

    code = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(FluxlineError):
    """The request cannot be served as it was asked."""

    code = "invalid_value"


class InvalidParams(RequestError):
    """A field is missing, of the wrong type or out of range. `field` names it in our words."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(RequestError):
    """No model of that name is served here."""

    code = "model_not_found"


class TooLarge(RequestError):
    """The picture never fits into the device's memory. The message has the numbers."""

    code = "too_large"


class UnknownLora(RequestError):
    """No adapter of that name is kept here."""

    code = "lora_not_found"


class UnsupportedFormat(RequestError):
    """No encoder or decoder for that picture format."""

    code = "unsupported_format"


class CapacityError(FluxlineError):
    """Not now. `retry_after_s` is our best guess when it would work, in seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(CapacityError):
    """The queue holds as many requests as it may."""

    code = "queue_full"


class NotReady(CapacityError):
    """The model is loading, or the worker is being restarted."""

    code = "model_loading"


class DatabaseDown(NotReady):
    """The database of the jobs does not answer: nothing was written."""

    code = "database_unavailable"


class DeadlineExceeded(CapacityError):
    """The request could not be finished in the time its caller gave."""

    code = "deadline_exceeded"


class LoadError(FluxlineError):
    """The model or the server cannot start."""

    code = "load_error"


class CheckpointMismatch(LoadError):
    """A checkpoint's tensors are not the model's. The message names the first few of each kind."""

    code = "checkpoint_mismatch"

    def __init__(
        self,
        source: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.shapes = dict(shapes or {})
        wrong = [f"{k} is {got}, wanted {want}" for k, (got, want) in self.shapes.items()]
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
            for kind, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of the wrong shape", wrong),
            )
            if names
        ]
        super().__init__(f"checkpoint {source} does not fit the model: {'; '.join(parts)}")


class ConfigError(LoadError):
    """A setting or a model's configuration file is wrong."""

    code = "config_error"


class EngineError(FluxlineError):
    """Something of ours failed while a picture was being made."""


class OutOfMemory(EngineError):
    """The device has no memory for this picture, even alone."""

    code = "out_of_memory"


class DeviceLost(EngineError):
    """Nothing on the device works any more; only a new process can help."""

    code = "device_lost"


class NotFinite(EngineError):
    """The model answered NaN or infinity for this picture."""

    code = "not_finite"


class StorageError(EngineError):
    """The store of pictures does not answer, or is full."""

    code = "storage_error"


class WorkerDied(EngineError):
    """The worker process died while it held this request, as often as we retry."""

    code = "worker_died"


class Cancelled(FluxlineError):
    """The caller cancelled the request."""

    code = "cancelled"


_BY_CODE: dict[str, type[FluxlineError]] = {
    kind.code: kind
    for kind in (
        RequestError,
        UnknownModel,
        TooLarge,
        UnknownLora,
        UnsupportedFormat,
        CapacityError,
        QueueFull,
        NotReady,
        DatabaseDown,
        DeadlineExceeded,
        LoadError,
        ConfigError,
        EngineError,
        OutOfMemory,
        DeviceLost,
        NotFinite,
        StorageError,
        WorkerDied,
        Cancelled,
    )
}


def error_of(
    code: str, message: str, *, field: str | None = None, retry_after_s: float | None = None
) -> FluxlineError:
    """Rebuild an error from what an event or another process says of it.

    Not every class has a code of its own: InvalidParams is known by its field, CheckpointMismatch
    comes back as the LoadError it is. An unknown code is our fault: EngineError.
    """
    if field is not None:
        return InvalidParams(message, field=field)
    kind = _BY_CODE.get(code, LoadError if code == CheckpointMismatch.code else EngineError)
    if issubclass(kind, CapacityError):
        return kind(message, retry_after_s=retry_after_s or 1.0)
    return kind(message)
