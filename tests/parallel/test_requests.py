"""Requests that ranks draw as they say: from a request to pixels, on several ranks."""

import functools
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fluxline.ability import Footprint, kept_bytes
from fluxline.approximation import approximation_of
from fluxline.degrees import Degrees
from fluxline.engine.build import open_model
from fluxline.engine.intake import Intake
from fluxline.engine.job import Plan
from fluxline.engine.loras import Library, LoraSources
from fluxline.engine.ranks import divide
from fluxline.engine.runner import BURST, Runner
from fluxline.engine.scheduler import Budget, Scheduler
from fluxline.engine.ticket import new_request
from fluxline.errors import InvalidParams, TooLarge
from fluxline.models.spec import References
from fluxline.parallel.crew import Crew
from fluxline.parallel.mesh import Mesh
from fluxline.request import LoraRef
from tests.lora_files import bfl_layers, random_lokr, random_lora

pytestmark = pytest.mark.timeout(300)  # four processes open models
STEPS = 9
PROMPTS = ("a red fox", "a blue boat")
EVERY_WAY = ("piflux", "distrifusion", "pipefusion")


@functools.cache
def model():
    return open_model("mini", "cpu", "fp32")


def drawn(count, requests, cancelled_after=None):
    """As `drawn_by`, with the embedded model whole on ranks that divide its tokens."""
    opened = model()
    whole = opened.spec, opened.forward
    try:
        return drawn_by(opened, Crew(Mesh.join(Degrees(ulysses=count))), requests, cancelled_after)
    finally:
        opened.spec, opened.forward = whole


def drawn_by(opened, crew, requests, cancelled_after=None):
    """Pixels of each request's first picture, its warnings, and the most evaluations at once.

    cancelled_after: plans after which the first request is cancelled.
    """
    divide(opened, crew)
    intake = Intake(opened.spec, Library(opened, LoraSources()).mix, is_technical=False)
    runner = Runner(opened, lambda: None, crew=crew)
    scheduler = Scheduler(Budget(batch_tokens=4096, resident_tokens=65536))
    jobs = [intake.jobs_of(request)[0] for request in requests]
    for job in jobs:
        scheduler.add(job, now=0.0)
    pictures, bursts, plans = {}, [1], 0
    while not scheduler.is_idle:
        plan = scheduler.next(now=float(plans))
        outcome = runner.execute(plan)
        assert not outcome.failed, outcome.failed
        scheduler.settle(plan, outcome)
        pictures.update(outcome.pictures)
        bursts += [advance.evaluations for advance in outcome.advanced.values()]
        assert all(len(plan.evaluate) == 1 for job in plan.evaluate if job.is_alone)
        plans += 1
        if plans == cancelled_after:
            scheduler.cancel(requests[0].id)
    runner.close()
    return [pictures.get(job.id) for job in jobs], [job.warnings for job in jobs], max(bursts)


def asked(prompt=PROMPTS[0], **params):
    picture = {name: params.pop(name) for name in ("image", "mask") if name in params}
    return new_request(prompt, seed=7, params={"steps": STEPS, **params}, **picture)


def alone(request):
    """What one rank draws of a request that may say how many would."""
    with torch.inference_mode():
        [picture], _, _ = drawn(1, [request])
    return picture


def apart(one, other):
    return np.abs(one.astype(int) - other).max()


def psnr(one, other):
    return 10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean())


def square(color, side=64):
    file = io.BytesIO()
    picture = Image.new("RGB", (side, side), "grey")
    picture.paste(color, (0, 0, side // 2, side))
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", EVERY_WAY)
@pytest.mark.parametrize(
    "params",
    [
        {"cfg_scale": 2.0, "negative_prompt": "grey"},
        {"sampler": "dpmpp_2m"},
        {"sampler": "euler_ancestral"},
        {"image": square("red"), "mask": square("white")},
    ],
    ids=["cfg", "multistep", "stochastic", "mask"],
)
def test_what_is_exact_at_every_evaluation_is_what_one_rank_draws(mode, params, ranks):
    parallel = approximation_of(f"{mode},sync={STEPS}")
    whole = alone(asked(**params))

    for [picture], _, _ in ranks.run(3, drawn, 3, [asked(**params, parallel=parallel)]):
        assert apart(picture, whole) <= 1


@pytest.mark.parametrize("adapter", [random_lora, random_lokr])
@pytest.mark.parametrize("mode", EVERY_WAY)
def test_an_adapter_acts_on_whatever_part_a_rank_has(mode, adapter, ranks, tmp_path):
    """Of pipefusion's parts all but the first have no text."""
    layers = bfl_layers(model().transformer.config)
    of_blocks = {name: sizes for name, sizes in layers.items() if "_blocks." in name}
    save_file(adapter(of_blocks), tmp_path / "it.safetensors")
    loras = [LoraRef(str(tmp_path / "it.safetensors"), 1.0)]
    parallel = approximation_of(f"{mode},sync={STEPS - 2}")
    whole = alone(asked(loras=loras))

    assert apart(alone(asked()), whole) > 8
    for [picture], _, _ in ranks.run(2, drawn, 2, [asked(loras=loras, parallel=parallel)]):
        assert psnr(picture, whole) > 30


@pytest.mark.parametrize("mode", EVERY_WAY)
def test_ranks_agree_on_a_picture_that_is_near_and_say_that_it_is_not_exact(mode, ranks):
    steps = {"steps": 28}
    whole = alone(asked(**steps))
    told = ranks.run(2, drawn, 2, [asked(**steps, parallel=approximation_of(mode))])

    for [picture], [warnings], _ in told:
        assert apart(picture, told[0][0][0]) == 0
        assert 20 < psnr(picture, whole) < 60
        assert any(f"drawn by {mode},sync=" in warning for warning in warnings)


@pytest.mark.parametrize("mode", EVERY_WAY)
def test_requests_that_approximate_leave_the_others_exact_and_each_other_alone(mode, ranks):
    many = [
        asked(PROMPTS[0], steps=12, parallel=approximation_of(f"{mode},sync=2")),
        asked(PROMPTS[1]),
        asked(PROMPTS[1], steps=12, parallel=approximation_of("piflux,sync=2")),
        asked(PROMPTS[0]),
    ]
    lone = [
        ranks.run(2, drawn, 2, [request])[0][0][0] if request.params.parallel else alone(request)
        for request in many
    ]

    for pictures, _, _ in ranks.run(2, drawn, 2, many):
        assert all(apart(one, other) <= 1 for one, other in zip(pictures, lone, strict=True))


@pytest.mark.parametrize("mode", EVERY_WAY)
def test_one_that_is_cancelled_leaves_nothing_behind(mode, ranks):
    many = [asked(steps=20, parallel=approximation_of(f"{mode},sync=1")), asked(PROMPTS[1])]
    whole = alone(many[1])

    for (cancelled, picture), _, _ in ranks.run(2, drawn, 2, many, 2):
        assert cancelled is None
        assert apart(picture, whole) <= 1


def traffic(requests):
    """Bytes that this rank sends in an evaluation."""
    opened = model()
    whole = opened.spec, opened.forward
    crew = Crew(Mesh.join(Degrees(ulysses=2)))
    try:
        divide(opened, crew)
        runner = Runner(opened, lambda: None, crew=crew)
        intake = Intake(opened.spec, lambda loras: (), is_technical=False)
        jobs = tuple(intake.jobs_of(request)[0] for request in requests)
        runner.execute(Plan(admit=jobs))
        before = crew.traffic.bytes
        assert len(runner.execute(Plan(evaluate=jobs)).advanced) == len(jobs)
        return crew.traffic.bytes - before
    finally:
        opened.spec, opened.forward = whole


def test_of_as_many_pictures_as_ranks_each_draws_its_own(ranks):
    pair = [asked(PROMPTS[0]), asked(PROMPTS[1])]
    width, height = model().spec.native_size
    velocity = 4 * model().noise(torch.Generator(), width, height).numel()

    assert ranks.run(2, traffic, pair) == [velocity] * 2
    assert min(ranks.run(2, traffic, pair[:1])) > 10 * velocity
    for pictures, _, _ in ranks.run(2, drawn, 2, pair):
        assert all(apart(one, alone(its)) <= 1 for one, its in zip(pictures, pair, strict=True))


def test_stages_run_through_several_evaluations_before_others_have_their_turn(ranks):
    request = asked(steps=20, parallel=approximation_of("pipefusion"))
    [(_, _, most), *_] = ranks.run(2, drawn, 2, [request])

    assert most == BURST


def crews_spec(degrees):
    """What a model says that it may be asked for, on such ranks."""
    opened = model()
    whole = opened.spec, opened.forward
    try:
        divide(opened, Crew(Mesh.join(degrees)))
        return opened.spec
    finally:
        opened.spec, opened.forward = whole


def test_stages_are_not_for_ranks_that_share_out_rows(ranks):
    spec = ranks.run(4, crews_spec, Degrees(cfg=2, ulysses=2))[0]
    assert (spec.ranks, spec.approximations) == (2, ("piflux", "distrifusion"))


def held(mode):
    """Bytes that two ranks remember of a picture of one row, and those that were predicted."""
    opened = model()
    whole = opened.spec, opened.forward
    crew = Crew(Mesh.join(Degrees(ulysses=2)))
    try:
        divide(opened, crew)
        [conditioning] = opened.encode(["a fox"])
        width, height = opened.spec.native_size
        context = opened.context(
            conditioning, width=width, height=height, guidance=3.5, sigmas=[0.9]
        )
        x = opened.noise(torch.Generator().manual_seed(0), width, height)[None]
        turn = crew.remembering(approximation_of(f"{mode},sync=1"))
        most = 0
        for _ in range(4):
            crew.evaluate(1, lambda own: opened.evaluate(x[own], [0.9], [context]), turn)
            most = max(most, turn.bytes)
        info = opened.spec.info(device="", dtype="")
        a_token = kept_bytes(approximation_of(mode), info)
        turn.close()
        return most, a_token * (context.image_tokens + context.text_tokens), turn.bytes
    finally:
        opened.spec, opened.forward = whole


@pytest.mark.parametrize("mode", ["piflux", "distrifusion"])
def test_what_is_remembered_of_a_picture_is_what_was_predicted(mode, ranks):
    for really, predicted, left in ranks.run(2, held, mode):
        assert really == predicted
        assert left == 0


def test_one_that_has_no_room_to_be_remembered_is_refused_with_what_would_fit():
    spec = replace(model().spec, ranks=2, approximations=EVERY_WAY, key_bytes=2**18, blocks=4)
    intake = Intake(spec, lambda loras: (), is_technical=False)
    intake.footprint = Footprint(free_bytes=2**28, token_bytes=1, pixel_bytes=1, grid=8)
    assert intake.jobs_of(asked(steps=28))
    with pytest.raises(TooLarge, match="would fit"):
        intake.jobs_of(asked(steps=28, parallel=approximation_of("piflux")))
    assert intake.jobs_of(asked(steps=28, parallel=approximation_of("pipefusion")))


def test_stages_are_shown_no_pictures_and_say_so():
    looks = References(most=1)
    spec = replace(model().spec, ranks=2, approximations=EVERY_WAY, references=looks)
    intake = Intake(spec, lambda loras: (), is_technical=False)
    shown = replace(asked(steps=28), references=(square("red"),))

    def parallel(text):
        return replace(shown, params=replace(shown.params, parallel=approximation_of(text)))

    assert intake.jobs_of(parallel("piflux"))
    with pytest.raises(InvalidParams, match="pipefusion draws after no pictures"):
        intake.jobs_of(parallel("pipefusion"))
    kept = Intake(
        replace(spec, references=replace(looks, in_memory=True)),
        lambda loras: (),
        is_technical=False,
    )
    with pytest.raises(InvalidParams, match="looks at pictures exactly only"):
        kept.jobs_of(parallel("piflux"))


def test_one_rank_is_asked_for_nothing_that_takes_several():
    intake = Intake(model().spec, lambda loras: (), is_technical=False)
    with pytest.raises(InvalidParams, match=r"takes several ranks; .* --parallel ulysses=2"):
        intake.jobs_of(asked(parallel=approximation_of("piflux")))
