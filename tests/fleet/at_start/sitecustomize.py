"""Python imports this at its start where this folder is on its path: FLUX.1 opens with a fault."""

import os

from fluxline.models import registry
from fluxline.parallel import meeting

registry.FAMILIES["flux1"] = "tests.fleet.faulty"
meeting.EXCHANGE_S = float(os.environ.get("FAULT_EXCHANGE_S", meeting.EXCHANGE_S))
