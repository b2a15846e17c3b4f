"""PipeFusion: blocks in stages, one a rank, and a sequence in parts that run through them.

A stage holds the keys of its own blocks alone. After a warm-up of whole evaluations the parts
follow one another, and nobody waits for the end of an evaluation: a part attends to itself and to
earlier parts as they are now, and to later ones as they were an evaluation ago. The last stage
gives every part a sampler of its own, and hands the first what that wants evaluated next.

Exact while it warms up, not after. Source: Fang et al. 2024, PipeFusion (arXiv:2405.14430). Two
things differ: text goes through once an evaluation, with the first part, and never stale (xDiT
feeds it to every part of the first stage); and a sampler may remember, for each part has one.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest

import torch
from torch import Tensor

from fluxline.ops.attention import Attend, attend
from fluxline.ops.bound import Staged
from fluxline.parallel.group import shares
from fluxline.parallel.stages import Stages

Sampling = Generator[tuple[Tensor, float], Tensor, Tensor]
"""A sampler on its way: yields (x, sigma), is sent the velocity, returns the picture."""

NoiseSource = Callable[[], Tensor]
Task = tuple[int, slice]
"""An evaluation, and the part of the sequence that it is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture to draw; the same at every rank.

    start: starts a sampler on some of the tokens, with where its fresh noise comes from. noise: the
    fresh noise of all of them. settle: one velocity (n, C) of the rows' (R, n, C), which are of the
    tokens there, at their x and sigma.
    """

    x: Tensor  # (N, C) float32, what the sampler starts from and wants evaluated first
    text: Tensor  # (R, L, D)
    rope: Tensor  # (R or 1, L + N, ·)
    modulation: Callable[[float], Tensor]  # (R, M, D) at a sigma
    start: Callable[[Tensor, NoiseSource], Sampling]
    noise: NoiseSource
    settle: Callable[[Tensor, Tensor, float, slice], Tensor]


class Pipeline:
    """One picture on its way. Thread: the engine's, the same calls on every rank.

    warmup: evaluations at the beginning that are whole. parts: of the sequence; one more than
    stages, unless said: as many keep all busy, and one more is what lies between two of them.
    """

    def __init__(
        self,
        stages: Stages,
        network: Staged,
        drawing: Drawing,
        *,
        warmup: int,
        parts: int | None = None,
    ) -> None:
        if warmup < 1:
            raise ValueError(f"warmup must be at least 1; got {warmup}")
        self._stages, self._network, self._drawing, self._warmup = stages, network, drawing, warmup
        self._words, image = drawing.text.shape[1], len(drawing.x)
        self._whole = slice(0, self._words + image)
        self._parts = parts_of(self._words, image, parts or min(stages.count + 1, image))
        self._known: list[Tensor] = []  # (2, R, H, S, head_dim) of each block of this stage
        self._samplings: list[Sampling] = []  # of each part, where they are
        self.sigmas = sigmas_of(drawing.start, drawing.x)
        self.done = 0  # evaluations
        self.x = drawing.x.clone()  # what is evaluated next, or the picture
        self.guess = drawing.x.clone()  # of the picture, by the last evaluation
        if stages.is_last:
            self._begin_samplings()

    @property
    def bytes(self) -> int:
        """Memory that this stage's keys and values take."""
        return sum(known.nbytes for known in self._known)

    @property
    def is_over(self) -> bool:
        """Whether x is the picture."""
        return self.done == len(self.sigmas)

    def run(self, evaluations: int) -> None:
        """Go on by so many evaluations, after which all ranks know x and the guess.

        In between nothing is under way: who lets go of it here leaves no message behind.
        """
        until = self.done + evaluations
        if not self.done < until <= len(self.sigmas):
            left = len(self.sigmas) - self.done
            raise ValueError(f"evaluations must be from 1 to {left}; got {evaluations}")
        tasks = [(number, part) for number in range(self.done, until) for part in self._at(number)]
        coming = self._expect(tasks[0])
        for task, following in zip_longest(tasks, tasks[1:]):
            given = coming()
            if following is not None:  # may come while this one is computed
                coming = self._expect(following)
            self._pass_on(task, self._think(task, given), until)
        if self._stages.count > 1:
            self.x, self.guess = self._stages.tell(torch.stack((self.x, self.guess))).unbind()
        self.done = until

    def _at(self, evaluation: int) -> Sequence[slice]:
        """The parts of an evaluation, one after another."""
        return (self._whole,) if evaluation < self._warmup else self._parts

    def _expect(self, task: Task) -> Callable[[], Tensor]:
        """Begin to receive what a task needs: text and image (R, n, D) before this stage."""
        evaluation, part = task
        drawing, stages = self._drawing, self._stages
        if not stages.is_first:
            rows, _, wide = drawing.text.shape
            both = drawing.text.new_empty(rows, part.stop - part.start, wide)
            arrived = stages.receive(both)

            def passed_on() -> Tensor:
                arrived()
                return both

            return passed_on
        arrivals: list[Callable[[], None]] = []
        if not stages.is_last and evaluation > self.done:
            for earlier in self._at(evaluation - 1):
                if part.start <= earlier.start < part.stop:
                    arrivals.append(stages.receive(self.x[self._image(earlier)]))

        def entered() -> Tensor:
            for arrived in arrivals:
                arrived()
            text = drawing.text[:, part]  # none, but of the first part
            x = self.x[self._image(part)].to(text.dtype).expand(len(text), -1, -1)
            return torch.cat((text, self._network.enter(x)), dim=1)

        return entered

    def _think(self, task: Task, both: Tensor) -> Tensor:
        """Text and image (R, n, D) after the blocks of this stage; after the last, velocity."""
        evaluation, part = task
        modulation = self._drawing.modulation(self.sigmas[evaluation])
        blocks = self._network.bound_blocks(modulation)
        words = max(0, self._words - part.start)
        text, image = both[:, :words], both[:, words:]
        rope = self._drawing.rope[:, part]
        for number, block in enumerate(blocks[self._stages.share(len(blocks))]):
            image, text = block(image, text, rope, self._attend(number, part))
        if self._stages.is_last:
            return self._network.leave(image, modulation).float()
        return torch.cat((text, image), dim=1)

    def _attend(self, number: int, part: slice) -> Attend:
        """Attend to all that is known of the sequence, once a part's own keys are."""

        def attend_to_known(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if number == len(self._known):  # in the warm-up: the part is the whole
                self._known.append(k.new_empty(2, *k.shape))
            keys, values = self._known[number]
            keys[:, :, part], values[:, :, part] = k, v
            return attend(q, keys, values)

        return attend_to_known

    def _pass_on(self, task: Task, made: Tensor, until: int) -> None:
        """Send what this stage made to the next; the last: what samplers make of it."""
        evaluation, part = task
        if not self._stages.is_last:
            self._stages.send(made)
            return
        for number, one in enumerate(self._parts):
            if part.start <= one.start < part.stop:
                self._advance(number, made[:, self._within(one, part)], self.sigmas[evaluation])
        if self._stages.count > 1 and evaluation + 1 < until:
            # a part's message has come before the part comes again: this waits for none
            self._stages.send(self.x[self._image(part)].clone(), ahead=len(self._parts))

    def _advance(self, number: int, rows: Tensor, sigma: float) -> None:
        """Send a part's sampler its velocity."""
        where = self._image(self._parts[number])
        x = self.x[where]
        velocity = self._drawing.settle(rows, x, sigma, where)
        self.guess[where] = x - sigma * velocity
        try:
            self.x[where], _ = self._samplings[number].send(velocity)
        except StopIteration as end:
            self.x[where] = end.value

    def _begin_samplings(self) -> None:
        fresh = CutNoise(self._drawing.noise, len(self._parts))
        for part in self._parts:
            where = self._image(part)
            sampling = self._drawing.start(self._drawing.x[where], fresh.of(where))
            next(sampling)  # x itself
            self._samplings.append(sampling)

    def _image(self, part: slice) -> slice:
        """The image tokens of a part of the sequence."""
        return slice(max(0, part.start - self._words), part.stop - self._words)

    def _within(self, one: slice, other: slice) -> slice:
        """The image tokens of a part, in those of another that has it."""
        own, first = self._image(one), self._image(other).start
        return slice(own.start - first, own.stop - first)


class CutNoise:
    """A picture's fresh noise, each part of which takes its own: the numbers it has uncut.

    draw: gives the whole (N, C). parts: how many take of every draw, each in their order.
    """

    def __init__(self, draw: NoiseSource, parts: int) -> None:
        self._draw, self._parts = draw, parts
        self._drawn: dict[int, Tensor] = {}
        self._taken: dict[int, int] = {}

    def of(self, where: slice) -> NoiseSource:
        """The noise of some tokens."""
        numbers = count()
        return lambda: self._take(next(numbers))[where]

    def _take(self, number: int) -> Tensor:
        if number not in self._drawn:
            self._drawn[number], self._taken[number] = self._draw(), 0
        self._taken[number] += 1
        if self._taken[number] < self._parts:
            return self._drawn[number]
        del self._taken[number]
        return self._drawn.pop(number)


def sigmas_of(start: Callable[[Tensor, NoiseSource], Sampling], x: Tensor) -> tuple[float, ...]:
    """The sigma of every evaluation, by a sampler that is told nothing: they are the same then."""
    nothing = x[:0]
    sampling = start(nothing, lambda: nothing)
    _, sigma = next(sampling)
    sigmas = [sigma]
    try:
        while True:
            _, sigma = sampling.send(nothing)
            sigmas.append(sigma)
    except StopIteration:
        return tuple(sigmas)


def parts_of(words: int, image: int, count: int) -> tuple[slice, ...]:
    """A sequence of text and image tokens in parts, the first with all the text.

    All are as long, so that none waits for another, unless the text alone is longer than that.
    """
    if not 1 <= count <= image:
        raise ValueError(f"parts must be from 1 to {image}, the image tokens; got {count}")
    head = max(words + 1, shares(words + image, count)[0])
    lengths = (head, *shares(words + image - head, count - 1)) if count > 1 else (words + image,)
    ends = [sum(lengths[: number + 1]) for number in range(count)]
    return tuple(slice(end - long, end) for end, long in zip(ends, lengths, strict=True))


def sent_of(tokens: int, hidden: int, itemsize: int) -> int:
    """Bytes that cross a boundary between stages in an evaluation of a row; whatever the parts."""
    return tokens * hidden * itemsize


def held_of(tokens: int, hidden: int, itemsize: int, blocks: int, stages: int) -> int:
    """Bytes of keys and values of a row that the stage with most blocks holds."""
    return 2 * tokens * hidden * itemsize * shares(blocks, stages)[0]
