"""PipeFusion: exact while it warms up, then as stale as is said, whoever computes what."""

from dataclasses import replace
from datetime import timedelta

import pytest
import torch

from fluxline import samplers
from fluxline.approximation import time_of
from fluxline.degrees import Degrees
from fluxline.models.conditioning import plain_steer
from fluxline.models.flux1.transformer import FluxTransformer
from fluxline.models.flux2.transformer import Flux2Config, Flux2Transformer
from fluxline.ops.attention import attend
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.pipefusion import (
    CutNoise,
    Drawing,
    Pipeline,
    held_of,
    parts_of,
    sent_of,
    sigmas_of,
)
from fluxline.parallel.stages import Stages
from tests.parallel.test_sequence import CONFIG

WORDS, IMAGE = 7, 29
SIGMAS = samplers.SCHEDULES["simple"](6, 1.15)
SAMPLERS = ["euler", "heun", "dpmpp_2m", "unipc", "euler_ancestral", "ddim"]
FLUX2 = Flux2Config(
    in_channels=8, out_channels=8, depth_double=2, depth_single=3, head_dim=16, heads=3,
    inner=80, text_dim=12, guidance=False, axes=(4, 4, 4, 4), theta=2000,
)  # fmt: skip
CPU = torch.device("cpu")


def flux(family):
    torch.manual_seed(0)
    model = FluxTransformer(CONFIG) if family == 1 else Flux2Transformer(FLUX2)
    for name, parameter in model.named_parameters():
        if "qk_norm" in name or "modulation" in name:  # attention that chooses, gates that let it
            parameter.requires_grad_(False).mul_(3)
    return model.eval()


def drawing(model, family, sampler="euler", rows=1):
    """A picture of random everything, the same wherever it is made."""
    generator = torch.Generator().manual_seed(rows)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    config = model.config
    axes = len(config.axes)
    text = model.embed_text(noise(rows, WORDS, config.text_dim))
    rope = model.rope(torch.randint(0, 9, (1, WORDS + IMAGE, axes), generator=generator).float())
    beside = [noise(rows, config.pooled_dim)] if family == 1 else []
    x, fresh = noise(IMAGE, config.out_channels), torch.Generator().manual_seed(5)

    def modulation(sigma):
        guidance = torch.full((rows,), 3.5) if config.guidance else None
        return model.modulate(torch.full((rows,), sigma), guidance, *beside)

    def settle(velocities, x, sigma, where):
        return velocities[0] if rows == 1 else plain_steer(4.0, None)(*velocities)

    return Drawing(
        x=x,
        text=text,
        rope=rope,
        modulation=modulation,
        start=lambda x, noise: samplers.start(sampler, x, SIGMAS, noise, 0.7),
        noise=lambda: torch.randn(x.shape, generator=fresh),
        settle=settle,
    )


def evaluated_whole(model, drawing, x, sigma):
    """Velocity of the whole picture, as one process computes it."""
    rows = x.expand(len(drawing.text), -1, -1)
    velocity = model(rows, drawing.text, drawing.modulation(sigma), drawing.rope)
    return drawing.settle(velocity, x, sigma, slice(None))


class Stale:
    """One process that attends as PipeFusion says: what is not here yet is an evaluation old."""

    def __init__(self, model, drawing, warmup, parts):
        self.model, self.drawing, self.warmup, self.parts = model, drawing, warmup, parts
        self.evaluation = -1
        self.known = {}  # (layer, part) -> keys and values

    def __call__(self, x, sigma):
        self.evaluation += 1
        told = self.drawing.text, self.drawing.modulation(sigma), self.drawing.rope
        if self.evaluation < self.warmup:
            self.layer = 0
            rows = x.expand(len(told[0]), -1, -1)
            velocity = self.model(rows, *told, attend=self.attend_and_cut)
        else:
            each = [self.of_part(number, x, *told) for number in range(len(self.parts))]
            velocity = torch.cat(each, dim=1)
        return self.drawing.settle(velocity, x, sigma, slice(None))

    def of_part(self, number, x, text, modulation, rope):
        part = self.parts[number]
        self.layer = 0

        def attend_to_parts(q, k, v):
            self.known[self.layer, number] = k, v
            keys, values = zip(
                *(self.known[self.layer, other] for other in range(len(self.parts))), strict=True
            )
            self.layer += 1
            return attend(q, torch.cat(keys, dim=2), torch.cat(values, dim=2))

        image = x[max(0, part.start - WORDS) : part.stop - WORDS].expand(len(text), -1, -1)
        return self.model(image, text[:, part], modulation, rope[:, part], attend=attend_to_parts)

    def attend_and_cut(self, q, k, v):
        for number, part in enumerate(self.parts):
            self.known[self.layer, number] = k[:, :, part], v[:, :, part]
        self.layer += 1
        return attend(q, k, v)


def sampled(drawing, evaluate):
    """The picture, by one sampler for all of it."""
    sampling = drawing.start(drawing.x, drawing.noise)
    x, sigma = next(sampling)
    try:
        while True:
            x, sigma = sampling.send(evaluate(x, sigma))
    except StopIteration as end:
        return end.value


def alone(family, sampler="euler", rows=1, stale=None):
    """The picture of one process; stale: of the warm-up and the parts."""
    with torch.inference_mode():
        model = flux(family)
        given = drawing(model, family, sampler, rows)
        if stale is not None:
            return sampled(given, Stale(model, given, *stale))
        return sampled(given, lambda x, sigma: evaluated_whole(model, given, x, sigma))


def stages_of(count):
    mesh = Mesh.join(Degrees(ring=count))
    return Stages(mesh.sequence, CPU), mesh.traffic


def piped(count, family, sampler, rows, warmup, parts, bursts):
    """The picture at this rank, and what it held."""
    stages, _ = stages_of(count)
    model = flux(family)
    pipeline = Pipeline(
        stages, model, drawing(model, family, sampler, rows), warmup=warmup, parts=parts
    )
    for evaluations in bursts:
        pipeline.run(evaluations)
    assert pipeline.is_over
    return pipeline.x, pipeline.guess


def distance(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


def evaluations_of(sampler):
    return samplers.evaluations(sampler, len(SIGMAS) - 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("count", "family"), [(2, 1), (3, 2), (4, 1)])
def test_warming_up_all_along_it_is_exact(count, family, sampler, ranks):
    whole, evaluations = alone(family, sampler), evaluations_of(sampler)

    for x, guess in ranks.run(
        count, piped, count, family, sampler, 1, evaluations, None, [evaluations]
    ):
        assert distance(x, whole) <= 1e-5
        assert distance(guess, whole) <= 1e-5  # the last step goes to what was guessed


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("count", "family", "parts", "warmup"), [(2, 1, 3, 1), (3, 2, 5, 2), (4, 1, 4, 1), (4, 2, 2, 1)]
)
def test_after_it_what_is_not_there_is_an_evaluation_old(
    count, family, parts, warmup, sampler, ranks
):
    stale = alone(family, sampler, stale=(warmup, parts_of(WORDS, IMAGE, parts)))
    exact, evaluations = alone(family, sampler), evaluations_of(sampler)

    for x, _ in ranks.run(count, piped, count, family, sampler, 1, warmup, parts, [evaluations]):
        assert distance(x, stale) <= 1e-5
        assert 1e-3 < distance(x, exact) < 0.1  # from 3e-3 (heun) to 9e-2 (euler_ancestral)


@pytest.mark.parametrize("warmup", [1, 6])
def test_a_negative_prompt_goes_along(warmup, ranks):
    stale = alone(1, "dpmpp_2m", rows=2, stale=(warmup, parts_of(WORDS, IMAGE, 4)))

    for x, _ in ranks.run(3, piped, 3, 1, "dpmpp_2m", 2, warmup, None, [6]):
        assert distance(x, stale) <= 1e-5


def test_one_rank_computes_what_many_do():
    with torch.inference_mode():
        x, _ = piped(1, 1, "euler", 1, 1, 4, [6])

    assert distance(x, alone(1, stale=(1, parts_of(WORDS, IMAGE, 4)))) <= 1e-5


@pytest.mark.parametrize("bursts", [[1] * 6, [2, 3, 1]])
def test_bursts_change_nothing(bursts, ranks):
    at_once = ranks.run(3, piped, 3, 1, "unipc", 1, 1, 4, [6])

    for (x, _), (other, _) in zip(
        ranks.run(3, piped, 3, 1, "unipc", 1, 1, 4, bursts), at_once, strict=True
    ):
        assert torch.equal(x, other)


def left_behind(count):
    """A picture after another that was let go of half way; and what all knew of that."""
    stages, _ = stages_of(count)
    model = flux(1)
    gone = Pipeline(stages, model, drawing(model, 1), warmup=1)
    gone.run(3)
    known = gone.x
    del gone
    pipeline = Pipeline(stages, model, drawing(model, 1, "dpmpp_2m"), warmup=1)
    pipeline.run(6)
    return known, pipeline.x


@pytest.mark.parametrize("count", [2, 4])
def test_a_picture_let_go_of_half_way_leaves_no_message_behind(count, ranks):
    right = alone(1, "dpmpp_2m", stale=(1, parts_of(WORDS, IMAGE, count + 1)))
    told = ranks.run(count, left_behind, count)

    for known, x in told:
        assert torch.equal(known, told[0][0])
        assert distance(x, right) <= 1e-5


class Mirror:
    """A network whose every block says of what evaluation the keys of every part are.

    Queries of nothing weigh all keys alike; a part's values say when they were made, in a channel
    of its own. A token: which part it is of, and a channel a part for each block to write to.
    """

    def __init__(self, parts, blocks):
        self.parts, self.blocks = parts, blocks

    def enter(self, x):
        return x

    def bound_blocks(self, modulation):
        return [self.block(number, modulation) for number in range(self.blocks)]

    def leave(self, image, modulation):
        return image

    def block(self, number, evaluation):
        own = len(self.parts)
        where = slice(own * (number + 1), own * (number + 2))

        def bound(image, text, rope, attend):
            both = torch.cat((text, image), dim=1)
            q = torch.zeros_like(both[..., :own])[:, None]
            seen = attend(q, q, both[:, None, :, :own] * evaluation)
            image = image.clone()
            image[..., where] = seen[:, text.shape[1] :] * (WORDS + IMAGE)
            return image, text

        return bound


def aged(count, parts, warmup, evaluations):
    """For each evaluation, part and block, the evaluation that every part's keys are of."""
    stages, _ = stages_of(count)
    cut, blocks = parts_of(WORDS, IMAGE, parts), 5
    lengths = torch.tensor([part.stop - part.start for part in cut])
    both = torch.zeros(WORDS + IMAGE, parts * (blocks + 1))
    for number, part in enumerate(cut):
        both[part, number] = 1.0
    told = {}

    def settle(rows, x, sigma, where):
        ages = rows[0, 0, parts:].view(blocks, parts) / lengths
        told[round(sigma), where.start] = ages.round(decimals=3).tolist()
        return torch.zeros_like(x)

    def start(x, noise):
        for number in range(evaluations):
            yield x, number
        return x

    pipeline = Pipeline(
        stages,
        Mirror(cut, blocks),
        Drawing(
            x=both[WORDS:],
            text=both[None, :WORDS],
            rope=torch.zeros(1, WORDS + IMAGE, 1),
            modulation=lambda sigma: torch.tensor(float(sigma)),
            start=start,
            noise=lambda: both[WORDS:],
            settle=settle,
        ),
        warmup=warmup,
        parts=parts,
    )
    pipeline.run(evaluations)
    return told


@pytest.mark.parametrize(("count", "parts"), [(2, 2), (3, 4), (4, 7), (4, 3)])
def test_later_parts_are_one_evaluation_old_and_no_others(count, parts, ranks):
    warmup, evaluations = 2, 6
    told = ranks.run(count, aged, count, parts, warmup, evaluations)[-1]
    starts = [max(0, part.start - WORDS) for part in parts_of(WORDS, IMAGE, parts)]

    for evaluation in range(evaluations):
        for number, start in enumerate(starts):
            old = evaluation if evaluation < warmup else evaluation - 1
            ages = [float(evaluation if other <= number else old) for other in range(parts)]
            assert told[evaluation, start] == [ages] * 5


def counted(count, parts, warmup, rows, bursts):
    stages, traffic = stages_of(count)
    model = flux(1)
    pipeline = Pipeline(stages, model, drawing(model, 1, rows=rows), warmup=warmup, parts=parts)
    before = traffic.bytes
    for evaluations in bursts:
        pipeline.run(evaluations)
    return traffic.bytes - before, pipeline.bytes


@pytest.mark.parametrize(("count", "parts", "rows"), [(2, 3, 1), (3, 4, 2), (4, 9, 1)])
def test_what_is_sent_and_held_is_what_the_formulas_say(count, parts, rows, ranks):
    bursts = [2, 4]
    told = ranks.run(count, counted, count, parts, 2, rows, bursts)

    blocks, x = CONFIG.depth_double + CONFIG.depth_single, IMAGE * CONFIG.out_channels * 4
    boundary = rows * 6 * sent_of(WORDS + IMAGE, CONFIG.hidden, 4)
    back, end = (6 - len(bursts)) * x, len(bursts) * 2 * x * (count - 1)
    assert [sent for sent, _ in told] == [boundary] * (count - 1) + [back + end]
    held = rows * held_of(WORDS + IMAGE, CONFIG.hidden, 4, blocks, count)
    assert max(held for _, held in told) == held
    assert sum(held for _, held in told) == rows * held_of(
        WORDS + IMAGE, CONFIG.hidden, 4, blocks, 1
    )


def with_own_weights(count):
    """A picture by ranks that have the weights of their own stage alone."""
    stages, _ = stages_of(count)
    model = flux(1)
    given = drawing(model, 1)
    vectors = {sigma: given.modulation(sigma) for sigma in SIGMAS[:-1]}
    blocks = [*model.double_blocks, *model.single_blocks]
    own = blocks[stages.share(len(blocks))]
    for block in blocks:
        if block not in own:
            block.to("meta")
    if not stages.is_first:
        model.image_in.to("meta")
    if not stages.is_last:
        model.image_out.to("meta")
    pipeline = Pipeline(stages, model, replace(given, modulation=vectors.__getitem__), warmup=6)
    pipeline.run(6)
    return pipeline.x


def test_a_rank_needs_no_weights_of_other_stages(ranks):
    whole = alone(1)

    for x in ranks.run(3, with_own_weights, 3):
        assert distance(x, whole) <= 1e-5


@pytest.mark.parametrize(
    ("words", "image", "count", "lengths"),
    [
        (7, 29, 4, [9, 9, 9, 9]),
        (7, 29, 5, [8, 7, 7, 7, 7]),
        (7, 29, 1, [36]),
        (20, 10, 3, [21, 5, 4]),  # the text alone is longer than a share
        (7, 3, 3, [8, 1, 1]),
    ],
)
def test_parts_are_as_long_and_the_first_has_all_the_text(words, image, count, lengths):
    parts = parts_of(words, image, count)

    assert [part.stop - part.start for part in parts] == lengths
    assert [part.start for part in parts] == [sum(lengths[:n]) for n in range(count)]


@pytest.mark.parametrize("count", [0, 30])
def test_more_parts_than_image_tokens_are_refused(count):
    with pytest.raises(ValueError, match="parts must be from 1 to 29"):
        parts_of(WORDS, IMAGE, count)


def test_a_pipeline_that_does_not_warm_up_is_refused():
    model = flux(1)
    stages, _ = stages_of(1)

    with pytest.raises(ValueError, match="warmup must be at least 1; got 0"):
        Pipeline(stages, model, drawing(model, 1), warmup=0)


@pytest.mark.parametrize("evaluations", [0, 7])
def test_evaluations_that_are_not_left_are_refused(evaluations):
    model = flux(1)
    stages, _ = stages_of(1)
    pipeline = Pipeline(stages, model, drawing(model, 1), warmup=1)

    with pytest.raises(ValueError, match="evaluations must be from 1 to 6"):
        pipeline.run(evaluations)


def test_cut_noise_is_the_noise_of_the_whole():
    generator = torch.Generator().manual_seed(3)
    cut = CutNoise(lambda: torch.randn(9, 2, generator=generator), parts=2)
    first, second = cut.of(slice(0, 4)), cut.of(slice(4, 9))

    drawn = [[first()], []]
    drawn[0].append(first())  # a part may be ahead
    drawn[1] += [second(), second()]

    generator.manual_seed(3)
    for top, bottom in zip(*drawn, strict=True):
        assert torch.equal(torch.cat((top, bottom)), torch.randn(9, 2, generator=generator))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sigmas_are_known_before_any_evaluation(sampler):
    model = flux(1)
    given = drawing(model, 1, sampler)
    asked = []
    with torch.inference_mode():
        sampled(given, lambda x, sigma: (asked.append(sigma), torch.zeros_like(x))[1])

    assert sigmas_of(given.start, given.x) == tuple(asked)


class Overtaking:
    """A network whose last stage ends no evaluation before the first has begun the next."""

    def __init__(self, stages, store, parts):
        self.stages, self.store, self.parts = stages, store, parts

    def enter(self, x):
        return x

    def bound_blocks(self, modulation):
        return [lambda *given: self.block(int(modulation), *given)] * self.stages.count

    def leave(self, image, modulation):
        return image

    def block(self, evaluation, image, text, rope, attend):
        part = int(image[0, -1, 0])
        if self.stages.is_first and part == 0:
            self.store.set(f"{evaluation}", "begun")
        if self.stages.is_last and part == self.parts - 1 and 1 <= evaluation < 4:
            self.store.wait([f"{evaluation + 1}"], timedelta(seconds=30))
        return image, text


def met(count, parts, path):
    stages, _ = stages_of(count)
    number = torch.zeros(WORDS + IMAGE, 1)
    for which, part in enumerate(parts_of(WORDS, IMAGE, parts)):
        number[part] = which

    def start(x, noise):
        for evaluation in range(5):
            yield x, evaluation
        return x

    pipeline = Pipeline(
        stages,
        Overtaking(stages, torch.distributed.FileStore(path, count), parts),
        Drawing(
            x=number[WORDS:],
            text=number[None, :WORDS],
            rope=torch.zeros(1, WORDS + IMAGE, 1),
            modulation=lambda sigma: torch.tensor(sigma),
            start=start,
            noise=lambda: number[WORDS:],
            settle=lambda rows, x, sigma, where: rows[0],
        ),
        warmup=1,
        parts=parts,
    )
    pipeline.run(5)
    return pipeline.is_over


@pytest.mark.parametrize(("count", "parts"), [(2, 2), (3, 4), (4, 12)])
def test_the_next_evaluation_begins_before_one_ends(count, parts, ranks, tmp_path):
    assert all(ranks.run(count, met, count, parts, str(tmp_path / "store")))


def test_time_is_the_warmup_then_a_full_pipe():
    assert time_of(28, 28, 5, 4) == 28
    assert time_of(4, 9, 5, 4) == 4
    assert time_of(12, 1, 1, 2) == 12  # a part at a time: nothing gained
    assert time_of(28, 1, 4, 4) == pytest.approx(1 + (27 * 4 + 3) / 16)
    assert 28 / time_of(28, 1, 8, 8) / 8 == pytest.approx(0.78, abs=0.005)  # as published
    assert 4 / time_of(4, 1, 8, 8) / 8 == pytest.approx(0.34, abs=0.005)
