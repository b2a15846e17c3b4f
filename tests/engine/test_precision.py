"""What may be asked for is what there is."""

from typing import get_args

from fluxline.engine.precision import DTYPES
from fluxline.linear.quantized import OWN_KINDS
from fluxline.request import PrecisionName


def test_every_kind_can_be_asked_for_by_its_name():
    assert set(get_args(PrecisionName)) == {"auto", *DTYPES, *OWN_KINDS}
