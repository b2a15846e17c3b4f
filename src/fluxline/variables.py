"""The environment as the settings read it: which variables are ours, and which only look so."""

import os
from collections.abc import Iterable

from pydantic_settings import EnvSettingsSource, PydanticBaseSettingsSource

from fluxline.errors import ConfigError
from fluxline.refusals import meant

ENV_PREFIX = "FLUXLINE_"
KEYS_VARIABLE = "API_KEYS"  # as the gRPC server before us called it

_KUBERNETES_LINKS = ("FLUXLINE_PORT_", "FLUXLINE_SERVICE_")
"""Variables Kubernetes sets in every container beside a service named fluxline; not ours."""


def refuse_unknown(options: Iterable[str]) -> None:
    """Refuse a variable with our prefix that stands for none of the options. Raises ConfigError."""
    known = {ENV_PREFIX + name.upper() for name in options}
    for name in os.environ:
        upper = name.upper()
        if upper.startswith(ENV_PREFIX) and upper not in known:
            if upper.startswith(_KUBERNETES_LINKS):
                continue
            raise ConfigError(f"unknown variable {name}{meant(upper, known)}")


def without_links(source: PydanticBaseSettingsSource) -> PydanticBaseSettingsSource:
    """Drop the address that Kubernetes puts where our port would stand (tcp://10.0.0.1:8080)."""
    if isinstance(source, EnvSettingsSource):
        port = f"{ENV_PREFIX}PORT".lower()
        source.env_vars = {
            name: value
            for name, value in source.env_vars.items()
            if not (name.lower() == port and value and "://" in value)
        }
    return source
