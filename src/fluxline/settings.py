"""Every option of the server, once: its name, type, default and what it does.

Flags, `FLUXLINE_*` variables, the TOML file and the documents are made from the fields below.
A flag beats a variable, a variable beats the file, the file beats the default.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fluxline.errors import ConfigError
from fluxline.profiles import (
    GIB,
    PRESETS,
    Card,
    Device,
    Load,
    Memory,
    Parallel,
    Precision,
    Preset,
    Profile,
    misfit,
)
from fluxline.refusals import in_words, made
from fluxline.variables import ENV_PREFIX, KEYS_VARIABLE, refuse_unknown, without_links

DEFAULT_FILE = Path("fluxline.toml")
DEFAULT_MODEL = "default"
"""What an alias points at to mean the model that is served when none is asked for."""

GRPC_IDLE_S = 60.0
"""After which the profile that is for gRPC is unloaded, as the gRPC server before us did."""


def _cards(given: Any) -> Any:  # Any: what stands there; pydantic checks what comes out
    if not isinstance(given, str):
        return given
    return [part.strip() for part in given.split(",") if part.strip()]


def _listeners(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    pairs = [part.partition("=") for part in given.split(",") if part.strip()]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError("must be PORT=PROFILE, with commas between")
    return {port.strip(): profile.strip() for port, _, profile in pairs}


Port = Annotated[int, Field(ge=0, le=65535)]
Table = Mapping[str, Any]  # Any: TOML; what it means is checked where the value is made


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
    profile: str = Field(
        "",
        description="profiles to serve, with commas between, the first for requests that name "
        "none; empty: all of the file",
    )
    device: Device = Field("auto", description="where the model runs; auto takes the best there is")
    devices: Annotated[tuple[Card, ...], NoDecode, BeforeValidator(_cards)] = Field(
        (), description="numbers of the cards to run on, with commas between; none: as they come"
    )
    precision: Precision = Field(
        "auto",
        description="how weights are held; auto takes what is fast here, or what the files have",
    )
    replicas: int | None = Field(
        None,
        ge=1,
        le=64,
        description="worker processes: one a device, or a share of the CPU's cores; absent: one "
        "for each of devices, else one",
    )
    parallel: Parallel = Field(
        "",
        description="devices that draw each picture together, as ulysses=2, ring=2, cfg=2, "
        "tensor=2, stages=2 or several of them with commas between; data=2: replicas; auto: what "
        "is predicted to be best for the cards that are here",
    )
    memory: Memory = Field(
        "auto",
        description="where the weights lie: resident on the card, visiting it a component "
        "(offload) or a block (stream) at a time, spread over all cards; auto: as they fit",
    )
    weights_gb: float | None = Field(
        None,
        gt=0,
        description="GiB of weights that visit a card at once; absent: most of what is free",
    )
    load: Load = Field(
        "eager", description="load the model when the server starts, or when it is first asked for"
    )
    idle_unload_s: float | None = Field(
        None, gt=0, description="seconds without work after which a lazy model is unloaded"
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="GiB that loaded profiles may take together; beyond, the one that was used "
        "least recently is unloaded",
    )
    listen: Annotated[Mapping[Port, str], NoDecode, BeforeValidator(_listeners)] = Field(
        {}, description="further ports, each with the profile of who names none: 8000=fp4,8001=bf16"
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
    grpc_profile: str = Field(
        "",
        description="profile that draws what gRPC asks for; empty: the first. A lazy one is "
        "unloaded after a minute unless it says otherwise",
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
    profiles: Mapping[str, Table] = Field(
        {}, description="named ways to draw; what one does not say, the options above say"
    )
    presets: Mapping[str, Table] = Field(
        {}, description="named bundles of parameters, besides draft, standard, high and ultra"
    )

    def served(self) -> tuple[Profile, ...]:
        """The profiles to serve, the first of them for who names none. Raises ConfigError.

        Without any in the file the options make one, which is called as its model is.
        """
        known = {name: self._profile(name, table) for name, table in self.profiles.items()}
        if not known:
            alone = self._profile("", {})
            known = {alone.name: alone}
        names = [name.strip() for name in self.profile.split(",") if name.strip()] or [*known]
        self._check_names("profile", names, known)
        chosen = tuple(known[name] for name in dict.fromkeys(names))
        served = {one.name: one for one in chosen}
        self._check_names("listen", self.listen.values(), served)
        self._check_names("grpc_profile", filter(None, [self.grpc_profile]), served)
        for one in chosen:
            self._check_names(f"profiles.{one.name}.fallback", filter(None, [one.fallback]), known)
        if self.memory_gb is not None and (why := misfit(chosen, int(self.memory_gb * GIB))):
            raise ConfigError(why)
        return chosen

    def named_presets(self) -> Mapping[str, Preset]:
        """The presets by their names. Raises ConfigError."""
        found = dict(PRESETS)
        for name, table in self.presets.items():
            usual = PRESETS[name].model_dump() if name in PRESETS else {}
            found[name] = made(Preset, f"presets.{name}", {**usual, **table})
            if self.profiles:
                wanted = filter(None, [found[name].profile])
                self._check_names(f"presets.{name}.profile", wanted, self.profiles)
        return found

    def _profile(self, name: str, table: Table) -> Profile:
        options = {key: getattr(self, key) for key in _OF_PROFILE if key not in table}
        if {**options, **table}.get("load") != "lazy":
            options.pop("idle_unload_s", None)
        elif name and name == self.grpc_profile and options.get("idle_unload_s", 1) is None:
            options["idle_unload_s"] = GRPC_IDLE_S
        where = f"profiles.{name}" if name else "model"
        profile = made(Profile, where, {**options, **table, "name": name or "-"})
        return profile if name else profile.model_copy(update={"name": profile.model_name})

    def _check_names(self, option: str, names: Iterable[str], known: Mapping[str, object]) -> None:
        for name in names:
            if name not in known:
                message = f"option {option}: no profile {name!r} here; there is {', '.join(known)}"
                raise ConfigError(message)

    def dividing(self, said: Mapping[str, str]) -> "Settings":
        """These settings with other ranks: what `parallel` says of each profile that is named.

        Raises ConfigError where the rest of a profile does not go with them.
        """
        if not self.profiles:
            (parallel,) = said.values()
            divided = self.model_copy(update={"parallel": parallel})
        else:
            tables = {
                name: {**table, "parallel": said[name]} if name in said else table
                for name, table in self.profiles.items()
            }
            divided = self.model_copy(update={"profiles": tables})
        divided.served()
        return divided

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
        return init_settings, without_links(env_settings), file


def _home() -> Path:
    """The user's own data folder for us."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "fluxline"


def load_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Gather the options of this process. A flag that is None was not given.

    Reads the environment and the TOML file. Raises ConfigError naming the option that is wrong.
    """
    given: dict[str, Any] = {k: v for k, v in (flags or {}).items() if v is not None}
    refuse_unknown(Settings.model_fields)
    if keys := os.environ.get(KEYS_VARIABLE):
        given.setdefault("api_keys", keys)
    try:
        settings = Settings(**given)
        settings.served()
        settings.named_presets()
        return settings
    except ValidationError as exc:
        raise ConfigError(in_words(exc, Settings)) from exc
    except SettingsError as exc:
        raise ConfigError(f"a {ENV_PREFIX}* variable cannot be read: {exc.__cause__}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"the configuration file is not valid TOML: {exc}") from exc


_OTHERS = {"queue_limit", "loras"}  # of the server: the bound of all together, a folder
_OF_PROFILE = tuple(
    name for name in Profile.model_fields if name in Settings.model_fields and name not in _OTHERS
)
"""What a profile may leave to the option of the same name."""


def _file(flag: object) -> Path | None:
    named = flag or os.environ.get(f"{ENV_PREFIX}CONFIG")
    if not named:
        return DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    path = Path(str(named))
    if not path.is_file():
        raise ConfigError(f"config must name a file that can be read; got {named}")
    return path
