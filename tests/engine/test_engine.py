"""The engine with a real random FLUX: the law, failures, cancelling, events."""

import asyncio
import gc
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxline import samplers
from fluxline.engine import Engine
from fluxline.engine.build import open_scorer
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.errors import (
    DeviceLost,
    EngineError,
    InvalidParams,
    LoadError,
    NotReady,
    OutOfMemory,
    UnknownModel,
    UnsupportedFormat,
)
from fluxline.images import read_recipe, technical_score
from fluxline.request import (
    CancelledEvent,
    Done,
    Failed,
    GenerationRequest,
    ImageReady,
    Planned,
    Progress,
    Queued,
    SamplingParams,
    Started,
)

BUDGET = Budget(batch_tokens=200, resident_tokens=2000)


def pixels(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.data))).astype(np.int16)


@pytest.fixture(scope="module")
def engine(schnell):
    with Engine(schnell, budget=BUDGET) as engine:
        yield engine


REQUESTS = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["a fox", "two cats", "", "a rocket 9"]),
        "seed": st.integers(0, 5),
        "n": st.integers(1, 2),
        "params": st.fixed_dictionaries(
            {
                "steps": st.integers(1, 5),
                "sampler": st.sampled_from(
                    ["euler", "heun", "ddim", "dpmpp_2m", "euler_ancestral", "unipc"]
                ),
                "schedule": st.sampled_from(["simple", "karras", "beta", "exponential"]),
                "cfg_scale": st.sampled_from([1.0, 2.5]),
                "eta": st.sampled_from([0.0, 1.0]),
            }
        ),
        "size": st.sampled_from([(64, 64), (128, 32), (32, 128), (48, 64)]),
    }
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.lists(REQUESTS, min_size=2, max_size=6),
    batch_tokens=st.sampled_from([28, 100, 400]),
    cancel=st.sets(st.integers(0, 5), max_size=2),
)
def test_a_picture_depends_on_its_request_alone(schnell, asked, batch_tokens, cancel):
    """Together in any mix equals alone, to one level of 255.

    A forward of other size sums in another order: about 1e-6 in float32, which rounding to uint8
    turns into at most one level, and for 999 of 1000 values into none.
    """

    def request_of(one):
        width, height = one["size"]
        params = {**one["params"], "width": width, "height": height}
        return new_request(one["prompt"], n=one["n"], seed=one["seed"], params=params)

    budget = Budget(batch_tokens=batch_tokens, resident_tokens=600)
    with Engine(schnell, budget=budget) as together:
        tickets = [together.submit(request_of(one)) for one in asked]
        for i in cancel & set(range(len(tickets))):
            tickets[i].cancel()
        ends = [[e for e in t if isinstance(e, Done | Failed | CancelledEvent | ImageReady)]
                for t in tickets]  # fmt: skip
    with Engine(schnell, budget=Budget(batch_tokens=1, resident_tokens=1)) as alone:
        for i, (one, events) in enumerate(zip(asked, ends, strict=True)):
            terminal = [e for e in events if not isinstance(e, ImageReady)]
            assert len(terminal) == 1
            assert isinstance(terminal[0], Done) or (
                i in cancel and isinstance(terminal[0], CancelledEvent)
            )
            solo = alone.submit(request_of(one)).result()
            for event in events:
                if isinstance(event, ImageReady):
                    gap = np.abs(pixels(event.image) - pixels(solo[event.image.index]))
                    assert gap.max() <= 1
                    assert np.mean(gap == 0) >= 0.999


def test_events_tell_the_whole_story_in_order(engine):
    events = list(engine.submit(new_request("a fox", n=2, seed=1, params={"steps": 3})))

    assert isinstance(events[0], Queued)
    assert isinstance(events[1], Started)
    assert isinstance(events[-1], Done)
    for index in (0, 1):
        told = [e.evaluation for e in events if isinstance(e, Progress) and e.index == index]
        assert told == [1, 2, 3]
    assert {e.image.index for e in events if isinstance(e, ImageReady)} == {0, 1}


def test_previews_are_small_pictures_of_what_is_expected(engine):
    request = replace(new_request("a fox", seed=1, params={"steps": 4}), preview_every=2)
    events = list(engine.submit(request))

    previews = [e.preview for e in events if isinstance(e, Progress) and e.preview]
    assert previews
    assert Image.open(io.BytesIO(previews[0])).size == (8, 8)


def test_a_ticket_can_be_read_asynchronously(engine):
    async def read():
        ticket = engine.submit(new_request("a fox", seed=1, params={"steps": 2}))
        return [type(e) async for e in ticket]

    assert asyncio.run(read())[-1] is Done


def test_the_same_prompt_in_flight_is_encoded_once(schnell):
    class Counting(type(schnell)):
        encoded: list[str]

        def encode(self, prompts):
            self.encoded.extend(prompts)
            return super().encode(prompts)

    model = Counting.__new__(Counting)
    model.__dict__.update(schnell.__dict__, encoded=[])
    with Engine(model, budget=BUDGET) as engine:
        tickets = [engine.submit(new_request("a fox", seed=s)) for s in range(5)]
        for ticket in tickets:
            ticket.result()

    assert model.encoded.count("a fox") == 1


class Faulty:
    """A model that does something terrible to one prompt and is itself otherwise."""

    def __init__(self, model, fault):
        self._model, self._fault = model, fault
        self._guilty = set()

    def __getattr__(self, name):
        return getattr(self._model, name)

    def context(self, conditioning, **rest):
        context = self._model.context(conditioning, **rest)
        if conditioning is self._bad:
            self._guilty.add(id(context.modulation))
        return context

    def encode(self, prompts):
        made = self._model.encode(prompts)
        for prompt, conditioning in zip(prompts, made, strict=True):
            if prompt == "bad":
                self._bad = conditioning
        return made

    _bad = None

    def evaluate(self, x, sigmas, contexts):
        velocity = self._model.evaluate(x, sigmas, contexts)
        for row, context in enumerate(contexts):
            if id(context.modulation) in self._guilty:
                if self._fault == "raises":
                    raise RuntimeError("device-side assert at 0x7f00")
                velocity = velocity.clone()
                velocity[row] = float("nan")
        return velocity


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_only_the_guilty_job_fails(schnell, engine, fault):
    with Engine(Faulty(schnell, fault), budget=BUDGET) as faulty:
        good = [faulty.submit(new_request("a fox", seed=s)) for s in range(3)]
        bad = faulty.submit(new_request("bad", seed=0))
        with pytest.raises(EngineError) as caught:
            bad.result()
        pictures = [t.result()[0] for t in good]

    assert "0x" not in caught.value.message
    for seed, picture in enumerate(pictures):
        alone = engine.generate("a fox", seed=seed)[0]
        assert np.abs(pixels(picture) - pixels(alone)).max() <= 1


class Altered:
    """A model with one verb replaced."""

    def __init__(self, model, **verbs):
        self._model, self._verbs = model, verbs

    def __getattr__(self, name):
        return self._verbs.get(name) or getattr(self._model, name)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_preview_that_cannot_be_drawn_is_left_out(schnell, engine, error, caplog):
    def preview(x0, width, height):
        raise error("none of this size")

    request = replace(new_request("a fox", seed=1, params={"steps": 3}), preview_every=1)
    with Engine(Altered(schnell, preview=preview), budget=BUDGET) as altered:
        events = list(altered.submit(request))

    assert {event.preview for event in events if isinstance(event, Progress)} == {None}
    [image] = [event.image for event in events if isinstance(event, ImageReady)]
    assert np.array_equal(pixels(image), pixels(engine.generate("a fox", seed=1, steps=3)[0]))
    assert caplog.text.count("no preview of") == 3


def test_a_solver_that_raises_fails_its_own_job_and_no_evaluation_is_done_twice(
    schnell, engine, monkeypatch
):
    calls = []

    def broken(x, sigmas, noise):
        yield x, sigmas[0]
        raise ValueError("no way on")

    monkeypatch.setitem(samplers.SOLVERS, "dpmpp_2m", broken)

    def evaluate(x, sigmas, contexts):
        calls.append(len(sigmas))
        return schnell.evaluate(x, sigmas, contexts)

    with Engine(Altered(schnell, evaluate=evaluate), budget=BUDGET) as altered:
        bad = new_request("bad", seed=1, params={"steps": 2, "sampler": "dpmpp_2m"})
        good = new_request("a fox", seed=2, params={"steps": 2})
        tickets = [altered.submit(bad), altered.submit(good)]
        with pytest.raises(EngineError):
            tickets[0].result()
        (image,) = tickets[1].result()

    assert sum(calls) == 3
    assert np.abs(pixels(image) - pixels(engine.generate("a fox", seed=2, steps=2)[0])).max() <= 1


class Small:
    """A device with room for so many rows of a forward, and for so many pictures to decode."""

    def __init__(self, model, *, rows, decodes=99, error=torch.OutOfMemoryError):
        self._model, self._rows, self._decodes, self._error = model, rows, decodes, error
        self.refused = 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def evaluate(self, x, sigmas, contexts):
        self._check(len(sigmas), self._rows)
        return self._model.evaluate(x, sigmas, contexts)

    def decode(self, x, width, height):
        self._check(len(x), self._decodes)
        return self._model.decode(x, width, height)

    def _check(self, wanted, there):
        if wanted > there:
            self.refused += 1
            raise self._error("[enforce fail] DefaultCPUAllocator: not enough memory: you tried")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("room", [{"rows": 3}, {"rows": 1, "decodes": 1}])
def test_memory_that_runs_out_costs_time_and_no_picture(schnell, engine, room, error):
    small = Small(schnell, **room, error=error)
    with Engine(small, budget=Budget(batch_tokens=2000, resident_tokens=4000)) as squeezed:
        tickets = [
            squeezed.submit(new_request("a fox", seed=s, params={"steps": 3})) for s in range(6)
        ]
        images = [ticket.result()[0] for ticket in tickets]

    assert small.refused
    for seed, image in enumerate(images):
        alone = engine.generate("a fox", seed=seed, steps=3)[0]
        assert np.abs(pixels(image) - pixels(alone)).max() <= 1


@pytest.mark.parametrize("verb", ["evaluate", "decode"])
def test_a_job_put_back_for_want_of_room_is_drawn_right_in_the_end(schnell, engine, verb):
    """A device where a picture can be evaluated, or decoded, beside one other running job only."""
    alive = WeakSet()

    def context(conditioning, **rest):
        made = schnell.context(conditioning, **rest)
        alive.add(made)
        return made

    def crowded(*args):
        gc.collect()
        if len(alive) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return getattr(schnell, verb)(*args)

    model = Altered(schnell, context=context, **{verb: crowded})
    prompts = [f"a fox {k}" for k in range(5)]
    with Engine(model, budget=Budget(batch_tokens=30, resident_tokens=4000)) as cramped:
        alive.clear()
        tickets = [cramped.submit(new_request(p, seed=1, params={"steps": 3})) for p in prompts]
        images = [ticket.result()[0] for ticket in tickets]

    for prompt, image in zip(prompts, images, strict=True):
        alone = engine.generate(prompt, seed=1, steps=3)[0]
        assert np.abs(pixels(image) - pixels(alone)).max() <= 1


def test_what_does_not_fit_even_alone_fails_and_the_rest_goes_on(schnell):
    with Engine(Small(schnell, rows=1), budget=BUDGET) as small:
        good = [small.submit(new_request("a fox", seed=s)) for s in range(2)]
        with pytest.raises(OutOfMemory, match="64x64 does not fit"):
            small.generate("a fox", cfg_scale=3.0)  # two rows
        assert all(ticket.result() for ticket in good)


def test_a_lost_device_is_told_to_whoever_can_start_anew(schnell):
    def evaluate(x, sigmas, contexts):
        raise DeviceLost("an illegal memory access was encountered")

    lost, told = threading.Event(), []
    engine = Engine(Altered(schnell, evaluate=evaluate), budget=BUDGET, on_lost=lost.set)
    engine.start(new_request("a fox"), told.append)

    assert lost.wait(10)
    assert [type(event) for event in told] == [Queued]  # it will be drawn elsewhere
    with pytest.raises(NotReady, match="the device is lost"):
        engine.submit(new_request("a fox"))
    engine.close()
    assert isinstance(told[-1], CancelledEvent)


def test_a_lost_device_without_a_fleet_fails_what_is_open_and_refuses_the_rest(schnell):
    def evaluate(x, sigmas, contexts):
        raise DeviceLost("an illegal memory access was encountered")

    with Engine(Altered(schnell, evaluate=evaluate), budget=BUDGET) as engine:
        with pytest.raises(DeviceLost):
            engine.generate("a fox")
        with pytest.raises(NotReady, match="the device is lost"):
            engine.generate("a fox")


def test_pictures_of_one_request_share_what_is_the_same_in_them(schnell):
    made = []

    def context(conditioning, **rest):
        made.append(rest)
        return schnell.context(conditioning, **rest)

    with Engine(Altered(schnell, context=context), budget=BUDGET) as engine:
        made.clear()
        engine.generate("a fox", n=6, steps=3)

    assert len(made) == 1


def test_timings_tell_where_the_time_went(schnell):
    def slow(verb, seconds):
        def slowly(*args, **rest):
            time.sleep(seconds)
            return getattr(schnell, verb)(*args, **rest)

        return slowly

    took = {"encode": 0.05, "evaluate": 0.1, "decode": 0.15}
    verbs = {verb: slow(verb, seconds) for verb, seconds in took.items()}
    with Engine(Altered(schnell, **verbs), budget=BUDGET) as engine:
        began = time.monotonic()
        (image,) = engine.generate("a fox", steps=3)
        whole_s = time.monotonic() - began

    timings = image.timings_s
    assert list(timings) == ["queue", "encode", "denoise", "decode", "compress"]
    assert timings["encode"] >= 0.05
    assert timings["denoise"] >= 0.3
    assert timings["decode"] >= 0.15
    assert 0.5 < sum(timings.values()) <= whole_s


def test_cancelling_ends_a_request_before_its_next_evaluation_but_one(schnell):
    may_go, calls = threading.Semaphore(0), []

    def evaluate(x, sigmas, contexts):
        may_go.acquire()
        calls.append(len(sigmas))
        return schnell.evaluate(x, sigmas, contexts)

    with Engine(Altered(schnell, evaluate=evaluate), budget=BUDGET) as engine:
        ticket = engine.submit(new_request("a fox", seed=1, params={"steps": 100}))
        events = iter(ticket)
        may_go.release()
        while not isinstance(next(events), Progress):
            pass
        ticket.cancel()  # the second evaluation may have begun
        may_go.release(50)

        assert isinstance(list(events)[-1], CancelledEvent)
        assert len(calls) <= 2


def test_requests_from_many_threads_on_a_busy_engine_all_end(schnell):
    with Engine(schnell, budget=BUDGET) as engine, ThreadPoolExecutor(8) as pool:
        drawn = list(
            pool.map(lambda s: engine.generate("a fox", seed=s, steps=1 + s % 3)[0], range(40))
        )

    assert [image.seed for image in drawn] == list(range(40))


def test_nothing_is_accepted_once_closed(schnell):
    engine = Engine(schnell, budget=BUDGET)
    engine.close()

    with pytest.raises(NotReady, match="shutting down"):
        engine.generate("a fox")


def test_closing_ends_what_is_open_and_leaves_nobody_waiting(schnell):
    engine = Engine(schnell, budget=BUDGET)
    tickets = [engine.submit(new_request("a fox", params={"steps": 100})) for _ in range(3)]
    engine.close()

    for ticket in tickets:
        assert isinstance(list(ticket)[-1], CancelledEvent)


def test_closing_with_patience_lets_pictures_finish(schnell):
    engine = Engine(schnell, budget=BUDGET)
    ticket = engine.submit(new_request("a fox", params={"steps": 5}))
    engine.close(drain_s=30)

    assert isinstance(list(ticket)[-1], Done)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"width": 0}, "width"),
        ({"height": 0}, "height"),
        ({"width": 10**9}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 101}, "steps"),
        ({"cfg_scale": float("nan")}, "cfg_scale"),
        ({"eta": 2.0}, "eta"),
        ({"sampler": "magic"}, "sampler"),
        ({"schedule": "soon"}, "schedule"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(engine, params, field):
    with pytest.raises(InvalidParams) as caught:
        engine.generate("a fox", **params)

    assert caught.value.field == field


def test_an_unknown_model_is_refused(engine):
    with pytest.raises(UnknownModel, match="no model 'flux9'"):
        engine.submit(replace(new_request("a fox"), model="flux9"))


def test_exactly_the_asked_size_comes_out(engine):
    (image,) = engine.generate("a fox", width=50, height=39, steps=1)

    assert pixels(image).shape == (39, 50, 3)


def test_a_picture_can_be_made_again_from_its_file(engine):
    (image,) = engine.generate("a fox, blue", seed=4, steps=2, sampler="heun", width=48)
    recipe = read_recipe(image.data)

    again = engine.submit(recipe.to_request("again")).result()[0]

    assert np.abs(pixels(again) - pixels(image)).max() <= 1


def test_different_parameters_make_different_pictures(schnell):
    base = {"steps": 3, "seed": 2, "width": 64, "height": 64}
    changes = [
        {"seed": 3},
        {"steps": 4},
        {"sampler": "heun"},
        {"sampler": "euler_ancestral"},
        {"sampler": "ddim", "eta": 1.0},
        {"schedule": "karras"},
        {"cfg_scale": 3.0},
        {"cfg_scale": 3.0, "negative_prompt": "a cat"},
    ]
    with Engine(schnell, budget=BUDGET) as engine:
        drawn = [engine.generate("a fox", **{**base, **c})[0] for c in ({}, *changes)]

    seen = {pixels(image).tobytes() for image in drawn}
    assert len(seen) == len(drawn)


def test_guidance_changes_the_picture_of_a_model_that_has_it(dev):
    with Engine(dev, budget=BUDGET) as engine:
        weak, strong = (engine.generate("a fox", seed=1, steps=2, guidance=g)[0] for g in (1, 6))

    assert not np.array_equal(pixels(weak), pixels(strong))


def test_guidance_on_a_model_without_it_is_a_warning_not_a_silence(engine):
    (image,) = engine.generate("a fox", steps=1, guidance=7.5)

    assert any("guidance 7.5 ignored" in warning for warning in image.warnings)


def test_a_prompt_that_is_cut_is_told(engine):
    (long,) = engine.generate("fox " * 50, steps=1)
    (short,) = engine.generate("a fox", steps=1)

    assert any("prompt cut" in warning for warning in long.warnings)
    assert not short.warnings


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"prompt": 7}, "prompt"),
        ({"params": SamplingParams(width=64.5)}, "width"),
        ({"params": SamplingParams(steps=True)}, "steps"),
        ({"output_format": "webp", "compression": 101}, "output_compression"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_drawn(engine, changed, field):
    with pytest.raises(InvalidParams) as caught:
        engine.submit(replace(new_request("a fox"), **changed))

    assert caught.value.field == field


def test_a_format_nobody_writes_is_refused_before_anything_is_drawn(engine):
    with pytest.raises(UnsupportedFormat, match="output_format must be one of png"):
        engine.submit(replace(new_request("a fox"), output_format="gif"))


def test_a_reader_that_raises_harms_nobody(engine):
    def broken(event):
        raise ValueError("reader")

    engine.start(new_request("a fox", params={"steps": 2}), broken)

    assert engine.generate("a cat", steps=2)


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(schnell):
    with Engine(schnell, budget=BUDGET) as engine:
        engine._scheduler.settle = None  # what no plan survives
        ticket = engine.submit(new_request("a fox"))

        with pytest.raises(EngineError, match="stumbled"):
            ticket.result()


def test_an_id_that_is_open_is_refused(schnell):
    with Engine(schnell, budget=BUDGET) as engine:
        request = new_request("a fox", params={"steps": 100})
        ticket = engine.submit(request)
        with pytest.raises(InvalidParams, match="already open"):
            engine.submit(request)
        ticket.cancel()
        assert isinstance(list(ticket)[-1], CancelledEvent)


@pytest.fixture(scope="module")
def judging(schnell, clip_folder):
    with Engine(schnell, budget=BUDGET, scorer=str(clip_folder)) as engine:
        yield engine


def test_top_k_keeps_the_pictures_that_the_scorer_likes_best(judging, clip_folder):
    prompt, device = "a fox", torch.device("cpu")
    every = judging.generate(prompt, n=5, seed=3, steps=2)
    kept = judging.generate(prompt, n=5, top_k=2, seed=3, steps=2)
    scorer = open_scorer(str(clip_folder), device)
    shown = [pixels(image).astype(np.uint8) for image in every]
    scores = scorer.score(shown, [prompt] * 5)
    wanted = sorted(range(5), key=lambda k: -scores[k])[:2]
    assert [image.index for image in kept] == wanted
    assert [image.data for image in kept] == [every[k].data for k in wanted]
    assert [image.score for image in kept] == pytest.approx([scores[k] for k in wanted], abs=1e-5)
    assert {image.scorer for image in kept} == {"clip"}
    assert all((image.score, image.scorer) == (None, None) for image in every)


def test_top_k_above_n_keeps_all_best_first(judging):
    kept = judging.generate("a fox", n=3, top_k=9, seed=3, steps=2)
    assert len(kept) == 3
    assert sorted(kept, key=lambda image: -(image.score or 0)) == kept


def test_top_k_of_one_request_leaves_its_neighbour_unscored(judging):
    asked = judging.submit(new_request("a fox", n=2, top_k=1, seed=1, params={"steps": 2}))
    plain = judging.submit(new_request("a fox", n=2, seed=1, params={"steps": 2}))
    assert all(image.score is not None for image in asked.result())
    assert all(image.score is None for image in plain.result())


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True])
def test_a_wrong_top_k_is_refused(judging, top_k):
    with pytest.raises(InvalidParams, match="top_k"):
        judging.generate("a fox", top_k=top_k)


def test_top_k_without_a_clip_keeps_the_technically_best_and_says_so(engine):
    every = engine.generate("a fox", n=4, seed=3, steps=2)
    kept = engine.generate("a fox", n=4, top_k=2, seed=3, steps=2)
    scores = [technical_score(pixels(image).astype(np.uint8)) for image in every]
    wanted = sorted(range(4), key=lambda k: -scores[k])[:2]
    assert [image.index for image in kept] == wanted
    assert [image.score for image in kept] == pytest.approx([scores[k] for k in wanted], abs=1e-3)
    assert {image.scorer for image in kept} == {"technical"}
    assert all("not the prompt" in image.warnings[-1] for image in kept)
    assert not any(image.warnings for image in every)


def test_a_scorer_that_cannot_be_opened_is_told_at_the_start(schnell, tmp_path):
    with pytest.raises(LoadError, match="not a CLIP"):
        Engine(schnell, budget=BUDGET, scorer=str(tmp_path))


def test_a_plan_says_of_every_picture_what_it_shall_be(engine):
    plan = (
        Planned(seed=5, params=SamplingParams(steps=2, sampler="heun")),
        Planned(seed=2, params=SamplingParams(steps=3, width=32, height=64)),
        Planned(seed=5, params=SamplingParams(steps=2)),
    )
    request = GenerationRequest(id="planned", prompt="a fox", seed=0, plan=plan)
    planned = engine.submit(request).result()
    for image, picture in zip(planned, plan, strict=True):
        params = {k: v for k, v in asdict(picture.params).items() if v is not None}
        (alone,) = engine.generate("a fox", seed=picture.seed, **params)
        assert np.abs(pixels(image) - pixels(alone)).max() <= 1
    assert [image.index for image in planned] == [0, 1, 2]


def test_a_wrong_picture_of_a_plan_refuses_the_request(engine):
    good, bad = SamplingParams(steps=2), SamplingParams(steps=0)
    for plan in (
        (Planned(seed=1, params=good), Planned(seed=1, params=bad)),
        (Planned(seed=-1, params=good),),
    ):
        with pytest.raises(InvalidParams):
            engine.submit(GenerationRequest(id="wrong", prompt="a fox", seed=0, plan=plan))
