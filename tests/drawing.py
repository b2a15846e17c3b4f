"""Draws the jobs of one request, all at once, as the engine does, and sees where the host waits."""

from fluxline.engine.intake import Intake
from fluxline.engine.job import Plan
from fluxline.engine.runner import Runner
from fluxline.engine.ticket import new_request


def jobs_of(model, *, mix=(), **asked):
    """The jobs of a request whose rows wear these adapters."""
    beside = {name: asked.pop(name) for name in ("image", "mask", "references") if name in asked}
    intake = Intake(model.spec, lambda loras: mix, is_technical=False)
    request = new_request("a red fox", seed=5, params={"width": 64, "height": 64} | asked, **beside)
    return intake.jobs_of(request)


def drawn(model, *jobs, cards=None, crew=None):
    """Pictures and previews of jobs, and where the host waited in each forward."""
    runner = Runner(model, lambda: None, crew=crew)
    waits = []

    def execute(plan):
        before = len(cards.waits) if cards else 0
        outcome = runner.execute(plan)
        assert not outcome.failed, outcome.failed
        if plan.evaluate and cards:
            waits.append(cards.waits[before:])
        return outcome

    execute(Plan(admit=jobs))
    running, previews, pictures = list(jobs), [], []
    while running:
        outcome = execute(Plan(evaluate=tuple(running)))
        previews += outcome.previews.values()
        running = [job for job in running if not outcome.advanced[job.id].is_over]
    for job in jobs:
        pictures += execute(Plan(decode=(job,))).pictures.values()
    runner.close()
    return pictures, previews, waits


def weights_of(model):
    """Every parameter and buffer of a model's networks."""
    modules = [network.module for network in model.networks()]
    return [w for module in modules for w in (*module.parameters(), *module.buffers())]
