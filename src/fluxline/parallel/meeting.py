"""How the ranks of a replica find each other: by torchrun's variables, or started by the first."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from fluxline.degrees import Degrees
from fluxline.errors import ConfigError, LoadError
from fluxline.parallel.crew import Crew
from fluxline.parallel.group import EXCHANGE_S
from fluxline.parallel.line import JOIN_S
from fluxline.parallel.mesh import Mesh

HERE = "127.0.0.1"
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OWN_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # "True": torchrun keeps the store


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ranks meet, before they exchange a tensor."""

    store: Store
    rank: int
    size: int
    host: str  # of the first rank, where the others reach it

    @classmethod
    def here(cls, size: int) -> "Meeting":
        """One that this process begins on this machine, as its first rank."""
        store = TCPStore(HERE, 0, size, is_master=True, wait_for_workers=False)
        return cls(store, 0, size, HERE)

    @classmethod
    def by_environment(cls) -> "Meeting":
        """The one that the environment names, as torchrun does. Raises LoadError."""
        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise ConfigError(f"{', '.join(missing)} not set: start the ranks with torchrun")
        try:
            store, rank, size = next(iter(rendezvous("env://", timeout=timedelta(seconds=JOIN_S))))
        except (dist.DistError, ValueError) as exc:
            raise LoadError(f"the ranks cannot meet: {exc}") from exc
        is_here = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
        return cls(store, rank, size, HERE if is_here else os.environ["MASTER_ADDR"])

    def variables(self, rank: int) -> dict[str, str]:
        """The environment of another rank of a meeting that is here."""
        assert isinstance(self.store, TCPStore)
        said = dict(zip(VARIABLES, (rank, self.size, self.host, self.store.port), strict=True))
        said |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": self.size, OWN_STORE: False}
        return {name: str(value) for name, value in said.items()}

    def crew(self, degrees: Degrees, device: torch.device, word: str) -> Crew:
        """Begin to exchange tensors. Called by all ranks at once; raises ConfigError.

        word: the line's. Ranks that meet here again, because some were lost, have another.
        """
        if degrees.ranks != self.size:
            message = f"{degrees.spelt} is for {degrees.ranks} ranks; there are {self.size}"
            raise ConfigError(message)
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)
        dist.init_process_group(  # no device_id: with one, groups are made by all ranks alone
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"fluxline/{word}", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=EXCHANGE_S),
        )
        mesh = Mesh.join(degrees, EXCHANGE_S)
        mesh.greet(device)
        return Crew(mesh)
