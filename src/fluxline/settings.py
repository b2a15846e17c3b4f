"""Every option of the server, once: its name, type, default and what it does.

Flags, `FLUXLINE_*` variables, the TOML file and the documents are made from the fields below.
A flag beats a variable, a variable beats the file, the file beats the default.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fluxline.errors import ConfigError

ENV_PREFIX = "FLUXLINE_"
KEYS_VARIABLE = "API_KEYS"  # as the gRPC server before us called it
DEFAULT_FILE = Path("fluxline.toml")
DEFAULT_MODEL = "default"
"""What an alias points at to mean the model that is served when none is asked for."""

_KUBERNETES_LINKS = ("FLUXLINE_PORT_", "FLUXLINE_SERVICE_")
"""Variables Kubernetes sets in every container beside a service named fluxline; not ours."""


class Settings(BaseSettings):
    """The options as they stand after flags, variables and file. Frozen."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    config: Path | None = Field(
        None, description="TOML file of options; ./fluxline.toml is read when it is there"
    )
    model: str = Field(
        "mini", min_length=1, description="model to serve: a name, a folder or a hub id"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="where the model runs; auto takes the best there is"
    )
    precision: Literal[
        "auto", "bf16", "fp32", "int8", "int8-dynamic", "fp8", "nf4", "nf4-double", "hqq4", "fp4"
    ] = Field(
        "auto",
        description="how weights are held; auto takes what is fast here, or what the files have",
    )
    replicas: int = Field(
        1, ge=1, le=64, description="worker processes: one a device, or a share of the CPU's cores"
    )
    data: Path | None = Field(
        None,
        description="folder of jobs and pictures; the default is one for each port in your own "
        "data folder",
    )
    loras: Path | None = Field(
        None, description="folder of LoRA files; the default is loras in your own data folder"
    )
    lora_gb: float = Field(
        2.0, ge=0, description="GiB of LoRAs that each replica keeps at hand, those used last"
    )
    lora_hub: bool = Field(
        False, description="fetch a LoRA that is named by its hub id and is not here"
    )
    database: str = Field(
        "", description="URL of the job database: postgresql://…; empty: SQLite in data"
    )
    storage: str = Field(
        "",
        description="where pictures are kept: memory:, a folder, s3://bucket?endpoint=…; empty: in "
        "data",
    )
    storage_url: str = Field(
        "", description="where anybody can read the stored pictures; empty: links are signed"
    )
    keep_days: float | None = Field(
        30.0, gt=0, description="days for which finished jobs and their pictures are kept"
    )
    keep_gb: float | None = Field(
        20.0, gt=0, description="GiB of pictures that are kept; beyond, the oldest go"
    )
    public_url: str = Field(
        "", description="this server as seen from outside, for links; empty: as each caller asks"
    )
    cors: str = Field(
        "", description="origins whose web pages may call, with commas between; *: all pages"
    )
    queue_limit: int = Field(
        64, ge=1, description="requests that may wait; further ones are answered 429"
    )
    queue_s: float = Field(
        3600.0, gt=0, description="seconds of predicted work that may wait, answered 429 beyond"
    )
    in_flight: int = Field(16, ge=1, description="requests that one replica is given at a time")
    stuck_s: float = Field(
        900.0,
        ge=0,
        description="seconds in which an engine with work may finish no evaluation and no picture "
        "before its worker is started again; 0: for ever",
    )
    max_n: int = Field(10, ge=1, le=1000, description="most pictures one request may ask for")
    max_batch: int = Field(64, ge=1, le=1000, description="most pictures of one batch (/generate)")
    drain_s: float = Field(
        30.0, ge=0, description="seconds that running requests are given when the server stops"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least serious lines that are logged"
    )
    log_format: Literal["text", "json"] = Field("text", description="shape of a log line")
    otlp_endpoint: str = Field(
        "",
        description="collector of traces, as http://localhost:4318; empty: as OTEL_* variables say",
    )
    body_limit_bytes: int = Field(
        2**20, ge=1024, description="longest request body; a longer one is answered 413"
    )
    upload_limit_bytes: int = Field(
        32 * 2**20,
        ge=1024,
        le=256 * 2**20,
        description="longest request body where it may bring a picture; a longer one is "
        "answered 413",
    )
    image_hosts: str = Field(
        "",
        description="hosts where a picture that is sent as its address may be fetched, with commas "
        "between; *: all public ones; empty: none",
    )
    api_keys: str = Field(
        "", description="keys that are good besides those in the database, with commas between"
    )
    webhook_hosts: str = Field(
        "",
        description="hosts that may be told of finished jobs, with commas between; *: all public "
        "ones; empty: no webhooks",
    )
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port for gRPC; 0 picks a free one; absent: no gRPC"
    )
    grpc_exclusive: bool = Field(
        True, description="draw for one gRPC Generate at a time, and not for one of each key"
    )
    open_metrics: bool = Field(False, description="show /metrics beyond this machine without a key")
    insecure: bool = Field(
        False, description="listen beyond this machine without any key: whoever comes can draw"
    )
    aliases: Mapping[Annotated[str, Field(min_length=1)], str] = Field(
        dict.fromkeys(("gpt-image-1", "gpt-image-2", "dall-e-2", "dall-e-3"), DEFAULT_MODEL),
        description="further names a request may call a model by; accepted, never listed",
    )

    def data_folder(self, port: int) -> Path:
        """Where the server on that port keeps its jobs; made if it is not there.

        Raises ConfigError.
        """
        folder = (self.data or _home() / str(port)).expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            message = f"data must name a folder that can be written: {exc.strerror}"
            raise ConfigError(message) from exc
        return folder

    def lora_folder(self) -> Path:
        """Where LoRAs lie, for every port alike; it need not be there, unless it was named.

        Raises ConfigError.
        """
        folder = (self.loras or (self.data or _home()) / "loras").expanduser().absolute()
        if self.loras is not None and not folder.is_dir():
            raise ConfigError(f"loras must name a folder; got {self.loras}")
        return folder

    def database_url(self, port: int) -> str:
        """Where the server on that port has its database. Raises ConfigError."""
        return self.database or f"sqlite:///{self.data_folder(port) / 'jobs.sqlite3'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Rank the sources: flags, variables, file."""
        file = TomlConfigSettingsSource(
            settings_cls, toml_file=_file(init_settings().get("config"))
        )
        return init_settings, _without_links(env_settings), file


def _home() -> Path:
    """The user's own data folder for us."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "fluxline"


def load_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Gather the options of this process. A flag that is None was not given.

    Reads the environment and the TOML file. Raises ConfigError naming the option that is wrong.
    """
    given: dict[str, Any] = {k: v for k, v in (flags or {}).items() if v is not None}
    _refuse_unknown_variables()
    if keys := os.environ.get(KEYS_VARIABLE):
        given.setdefault("api_keys", keys)
    try:
        return Settings(**given)
    except ValidationError as exc:
        raise ConfigError("; ".join(_in_words(error) for error in exc.errors())) from exc
    except SettingsError as exc:
        raise ConfigError(f"a {ENV_PREFIX}* variable cannot be read: {exc.__cause__}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"the configuration file is not valid TOML: {exc}") from exc


def _without_links(source: PydanticBaseSettingsSource) -> PydanticBaseSettingsSource:
    """Drop the address that Kubernetes puts where our port would stand (tcp://10.0.0.1:8080)."""
    if isinstance(source, EnvSettingsSource):
        port = f"{ENV_PREFIX}PORT".lower()
        source.env_vars = {
            name: value
            for name, value in source.env_vars.items()
            if not (name.lower() == port and value and "://" in value)
        }
    return source


def _file(flag: object) -> Path | None:
    named = flag or os.environ.get(f"{ENV_PREFIX}CONFIG")
    if not named:
        return DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    path = Path(str(named))
    if not path.is_file():
        raise ConfigError(f"config must name a file that can be read; got {named}")
    return path


def _refuse_unknown_variables() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        upper = name.upper()
        if upper.startswith(ENV_PREFIX) and upper not in known:
            if upper.startswith(_KUBERNETES_LINKS):
                continue
            near = difflib.get_close_matches(upper, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown variable {name}{hint}")


def _in_words(error: Any) -> str:  # Any: pydantic's ErrorDetails, whose input is anything
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        return f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else "")
    return f"option {name}: {error['msg']}; got {error['input']!r}"
