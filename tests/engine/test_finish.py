"""What becomes of a picture on the finishing threads."""

import numpy as np
import pytest

from fluxline.engine.finish import Finishing
from fluxline.engine.intake import Intake
from fluxline.engine.job import Change
from fluxline.engine.ticket import new_request


@pytest.fixture
def told(schnell):
    """What is told of two pictures of a request, the first of which has no sides."""
    intake = Intake(schnell.spec, lambda loras: (), is_technical=False)
    jobs = intake.jobs_of(new_request("a fox", n=2, seed=3, params={"width": 64, "height": 64}))
    delivered, failed = [], []
    finishing = Finishing(
        schnell,
        parallel="",
        deliver=lambda request_id, image: delivered.append((request_id, image)),
        fail=lambda request_id, error: failed.append((request_id, error)),
    )
    for job, shape in zip(jobs, [(), (64, 64, 3)], strict=True):
        finishing.put(Change(job, picture=np.zeros(shape, np.uint8)), threads=1)
    finishing.close()
    return jobs[0].request.id, delivered, failed


def test_a_picture_that_cannot_be_encoded_fails_by_its_number(told):
    request_id, _, failed = told

    [(failed_id, error)] = failed
    assert (failed_id, error.message) == (request_id, "picture 0 could not be encoded")


def test_the_pictures_after_it_are_delivered(told):
    request_id, delivered, _ = told

    [(delivered_id, image)] = delivered
    assert (delivered_id, image.index, image.seed) == (request_id, 1, 4)
    assert image.data.startswith(b"\x89PNG")
