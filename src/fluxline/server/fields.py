"""Reading a body strictly: one field at a time, by any of its names, in the caller's words.

What a field means is the business of the dialect that reads it.
"""

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fluxline.errors import InvalidParams, RequestError

T = TypeVar("T")

LONGEST_LIST = 64
MOST_VALUES = 100_000
"""In one body: to read millions of empty ones takes seconds, of which nobody else has any."""


class MalformedBody(RequestError):
    """The body is no JSON object, so that no field can be named."""

    code = "invalid_json"


class MissingParam(InvalidParams):
    """A field that must be there is not."""

    code = "missing_required_parameter"


class UnsupportedParam(InvalidParams):
    """A field asks for something that is not served here."""

    code = "unsupported_parameter"


class Fields:
    """The fields of one JSON object. Remembers which were read, and by which name.

    null is the same as absent. A field given by two names with two values is refused.
    """

    def __init__(self, body: Mapping[str, Any], inside: str = "") -> None:  # Any: JSON, checked
        self._body, self._inside = dict(body), inside
        self._read: set[str] = set()
        self._used: dict[str, str] = {}

    def used_name(self, name: str) -> str:
        """Say by which of its names the caller gave a field; the name itself if not given."""
        return self._used.get(name, name)

    def unread(self) -> list[str]:
        """List the fields nobody has asked for, as they can be told: half a character as "?"."""
        names = [f"{self._inside}{name}" for name in self._body if name not in self._read]
        return [name.encode("utf-8", "replace").decode() for name in names]

    def has(self, *names: str) -> bool:
        """Say whether one of these fields stands there, null or not. Marks nothing as read."""
        return not self._body.keys().isdisjoint(names)

    def skip(self, *names: str) -> None:
        """Mark fields as read: somebody else looks at them."""
        self._read.update(names)

    def given(self, name: str) -> bool:
        """Mark a field as read; say whether it has a value."""
        return self._value((name,)) is not None

    def asks(self, name: str) -> bool:
        """Mark a field as read; say whether its value is one that asks for something."""
        return bool(self._value((name,)))

    def value(self, *names: str) -> Any:  # Any: the reader checks it
        """Read whatever stands there."""
        return self._value(names)

    def text(self, *names: str) -> str | None:
        """Read a string."""
        value = self._value(names)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(names, "must be a string", value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._wrong(names, "must be whole Unicode characters", ...) from None
        return value

    def boolean(self, *names: str) -> bool | None:
        """Read true or false."""
        value = self._value(names)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(names, "must be true or false", value)
        return value

    def integer(self, *names: str, low: int, high: int) -> int | None:
        """Read an integer from low to high, both included. 4.0 is not one, true is not one."""
        value = self._value(names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(names, f"must be an integer from {low} to {high}", value)
        return value

    def number(self, *names: str, low: float, high: float) -> float | None:
        """Read a finite number from low to high, both included."""
        value = self._value(names)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or not math.isfinite(value):
            raise self._wrong(names, f"must be a number from {low:g} to {high:g}", value)
        return float(value)

    def choice(self, *names: str, of: Sequence[str]) -> str | None:
        """Read one of a few words, in any case. An empty string is the same as absent."""
        value = self.text(*names)
        if not value:
            return None
        if value.lower() not in of:
            raise self._wrong(names, f"must be one of {', '.join(of)}", value)
        return value.lower()

    def nested(self, name: str) -> "Fields | None":
        """Read an object."""
        value = self._value((name,))
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong((name,), "must be an object", value)
        return Fields(value, inside=f"{self._inside}{name}.")

    def listed(self, name: str, read: Callable[["Fields", str], T | None]) -> list[T] | None:
        """Read a list, each of its values by `read`, which is given one name a value."""
        value = self._value((name,))
        if value is None:
            return None
        if not isinstance(value, list) or not 1 <= len(value) <= LONGEST_LIST:
            raise self._wrong((name,), f"must be a list of 1 to {LONGEST_LIST} values", value)
        items = Fields({f"{name}[{k}]": v for k, v in enumerate(value)}, inside=self._inside)
        found = []
        for label in items._body:
            if (item := read(items, label)) is None:
                raise items._wrong((label,), "must have a value", None)
            found.append(item)
        return found

    def _value(self, names: Sequence[str]) -> Any:
        self._read.update(names)
        present = [name for name in names if self._body.get(name) is not None]
        if not present:
            return None
        first, *others = present
        self._used[names[0]] = first
        value = self._body[first]
        for other in others:
            twin = self._body[other]
            if twin != value or isinstance(twin, bool) is not isinstance(value, bool):
                message = f"{first} and {other} mean the same and must agree"
                raise InvalidParams(message, field=other)
        return value

    def _wrong(self, names: Sequence[str], rule: str, value: object) -> InvalidParams:
        used = self._inside + self.used_name(names[0])
        got = "" if value is ... else f"; got {_shown(value)}"
        return InvalidParams(f"{used} {rule}{got}", field=used)


class FormFields(Fields):
    """The parts of a form: text, whatever it stands for, and files as bytes.

    Nothing is the same as absent. Raises MalformedBody for a part that is given twice, unless it
    is a list: `name[]`, or a file.
    """

    def __init__(self, parts: Sequence[tuple[str, str | bytes]]) -> None:
        body: dict[str, Any] = {}
        for label, value in parts:
            name, bracket, _ = label.partition("[")
            if name in body and not bracket and isinstance(value, str):
                raise MalformedBody(f"the form has {name[:64]} twice")
            if name in body or bracket:
                body.setdefault(name, [])
                before = body[name] if isinstance(body[name], list) else [body[name]]
                body[name] = [*before, value]
            elif value != "":
                body[name] = value
        super().__init__(body)

    def boolean(self, *names: str) -> bool | None:
        """Read true or false."""
        self._translate(names, {"true": True, "false": False}.__getitem__)
        return super().boolean(*names)

    def integer(self, *names: str, low: int, high: int) -> int | None:
        """Read an integer from low to high, both included."""
        self._translate(names, int)
        return super().integer(*names, low=low, high=high)

    def number(self, *names: str, low: float, high: float) -> float | None:
        """Read a finite number from low to high, both included."""
        self._translate(names, float)
        return super().number(*names, low=low, high=high)

    def _translate(self, names: Sequence[str], meaning: Callable[[str], object]) -> None:
        """Let text be what it stands for; what stands for nothing of the kind stays text."""
        for name in names:
            if isinstance(text := self._body.get(name), str):
                with contextlib.suppress(ValueError, KeyError):
                    self._body[name] = meaning(text.strip().lower())


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a body that must be one JSON object. Raises MalformedBody."""
    if sum(map(raw.count, (b"{", b"[", b","))) > MOST_VALUES:
        raise MalformedBody("the body has too many values")
    try:
        body = json.loads(raw, parse_constant=_no_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        reason = exc.msg if isinstance(exc, json.JSONDecodeError) else "it cannot be read"
        raise MalformedBody(f"the body must be JSON: {reason}") from exc
    if not isinstance(body, dict):
        raise MalformedBody(f"the body must be a JSON object; got {_shown(body)}")
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object whose names can be said back. Raises UnicodeEncodeError: half a character."""
    for name, _ in pairs:
        name.encode()
    return dict(pairs)


def _no_constant(name: str) -> float:
    """Let NaN and Infinity, which JSON does not have, become a number no range contains."""
    return float(name)


def _shown(value: object) -> str:
    """Spell a wrong value for its sender, briefly."""
    if isinstance(value, bytes):
        return "a file"
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError, TypeError):  # a list may hold files
        return "something too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
