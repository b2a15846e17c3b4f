"""Where a model's weights lie: on the device, or at home, or over several devices.

*offload*: a component at a time visits it. *stream*: a block at a
time, as many as its memory has room for. *spread*: over several devices, each block on one.
Nothing of the picture changes: the same modules compute the same.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fluxline.linear.distant import Distant
from fluxline.models.base import DiffusionModel
from fluxline.weights.spread import spread
from fluxline.weights.visits import Visits

Memory = Literal["offload", "stream", "spread"]


def place(
    model: DiffusionModel[Any],
    memory: Memory,
    devices: Sequence[torch.device],
    *,
    budget_bytes: int = 0,
) -> None:
    """Put the weights of a model, read at home, where they shall lie, and let it compute there.

    devices: one, but for `spread`. budget_bytes: of the weights that visit the device at once.
    """
    model.compute_on(devices[0])
    networks = model.networks()
    for network in networks:
        for name in network.once:
            layer = network.module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            network.module.set_submodule(name, Distant(layer))
    units = [network.units for network in networks]
    _settle([network.module for network in networks], units, devices[0])
    if memory == "spread":
        chains = {number for number, network in enumerate(networks) if network.is_chain}
        spread(units, devices, chains=chains)
    else:
        together = memory == "offload"
        visits = Visits(units, devices[0], budget_bytes=budget_bytes, together=together)
        visits.fill()
        model.awaited_bytes = lambda: visits.awaited_bytes


def _settle(
    networks: Sequence[nn.Module], units: Sequence[Sequence[nn.Module]], device: torch.device
) -> None:
    """Put on the device what neither visits nor stays at home: embedders, norms, the last layer."""
    modules = [module for network in networks for module in network.modules()]
    stay = [module for module in modules if isinstance(module, Distant)]
    elsewhere = {id(w) for module in (*chain.from_iterable(units), *stay) for w in _weights(module)}
    for weight in chain.from_iterable(map(_weights, networks)):
        if id(weight) not in elsewhere:
            weight.data = weight.data.to(device)


def _weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
