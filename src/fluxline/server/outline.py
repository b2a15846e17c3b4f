"""What the reading of a body looks for, as JSON Schema.

A body is described by reading it: an `Outline` is read in its place, by the very functions that
read bodies, and notes each field that they ask for. So no field can be read and not described.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from fluxline.errors import InvalidParams
from fluxline.server.fields import LONGEST_LIST, Fields, MissingParam, UnsupportedParam
from fluxline.server.words import SHAPES, said_of

T = TypeVar("T")
Schema: TypeAlias = dict[str, Any]  # Any: JSON
Reading: TypeAlias = Callable[[Fields], object]

SOMETHING = "x"  # stands in a field that must be there
COUNT = "n"  # of pictures


class Outline(Fields):
    """A body in which nothing stands but what must, and which notes what is looked for in it.

    needed: fields that must be there. refused: those that are refused whatever they ask for.
    """

    def __init__(self, needed: set[str], refused: set[str]) -> None:
        super().__init__({})
        self._needed, self._refused = needed, refused
        self._nested: dict[str, Outline] = {}
        self._aliased: set[str] = set()
        self.properties: dict[str, Schema] = {}

    @property
    def schema(self) -> Schema:
        """What was looked for, as an object. What may have one of several names is not required."""
        required = [name for name in self.properties if name in self._needed - self._aliased]
        told: Schema = {"type": "object", "properties": self.properties}
        return {**told, "required": required} if required else told

    def skip(self, *names: str) -> None:
        """Note fields that somebody else looks at."""
        for name in names:
            self._note((name,), {})

    def given(self, name: str) -> bool:
        """Note a field; it has a value, unless it is refused for that."""
        return self.asks(name)

    def asks(self, name: str) -> bool:
        """Note a field; it asks for something, unless it is refused for that."""
        self._note((name,), {})
        return name not in self._refused

    def value(self, *names: str) -> Any:  # Any: as `Fields` has it
        """Note a field of a shape that its reader knows, and `words`."""
        self._note(names, SHAPES[names[0]])
        return SOMETHING if names[0] in self._needed else None

    def text(self, *names: str) -> str | None:
        """Note a string."""
        self._note(names, {"type": "string"})
        return SOMETHING if names[0] in self._needed else None

    def boolean(self, *names: str) -> bool | None:
        """Note a truth."""
        self._note(names, {"type": "boolean"})
        return None

    def integer(self, *names: str, low: int, high: int) -> int | None:
        """Note an integer. Most pictures are asked, for how many may be kept goes by that."""
        self._note(names, {"type": "integer", "minimum": low, "maximum": high})
        return high if names[0] == COUNT else None

    def number(self, *names: str, low: float, high: float) -> float | None:
        """Note a number."""
        self._note(names, {"type": "number", "minimum": low, "maximum": high})
        return None

    def choice(self, *names: str, of: Sequence[str]) -> str | None:
        """Note a word of a few."""
        self._note(names, {"type": "string", "enum": list(of)})
        return None

    def nested(self, name: str) -> Fields | None:
        """Note an object, and go on noting what is looked for in it."""
        inner = self._nested.setdefault(name, Outline(self._needed, self._refused))
        self._note((name,), inner.schema)
        return inner

    def listed(self, name: str, read: Callable[[Fields, str], T | None]) -> list[T] | None:
        """Note a list, and what is looked for in one of it."""
        items = Outline(self._needed, self._refused)
        read(items, name)
        one = {k: v for k, v in items.properties[name].items() if k != "description"}
        many = {"type": "array", "minItems": 1, "maxItems": LONGEST_LIST, "items": one}
        self._note((name,), many)
        return None

    def _note(self, names: Sequence[str], what: Schema) -> None:
        """Note a field by all its names; what says more of it than is known already stays."""
        first, *others = names
        if first in self._refused:
            return
        if what or first not in self.properties:
            self.properties[first] = {**what, "description": said_of(first, what)}
        if others:
            self._aliased.add(first)
        for other in others:
            self.properties[other] = {**what, "description": f"the same as {first}"}


def outlined(read: Reading) -> Schema:
    """Describe the body that a function reads.

    Read again and again, until nothing that must be there lacks, nor anything asks for what is
    refused: such fields are left out.
    """
    needed: set[str] = set()
    refused: set[str] = set()
    while True:
        outline = Outline(needed, refused)
        try:
            read(outline)
        except MissingParam as exc:
            _add(exc, needed)
        except UnsupportedParam as exc:
            _add(exc, refused)
        else:
            return outline.schema


def _add(error: InvalidParams, found: set[str]) -> None:
    """Learn of a field by its refusal, unless that was no help before. Raises it then."""
    if error.field in found:
        raise error
    found.add(error.field)
