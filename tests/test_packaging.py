"""The Dockerfile, compose.yaml and the systemd unit do what they say, as far as that shows here.

No Docker engine runs in the tests: `tests/image.py` does what the Dockerfile says in a folder.
"""

import base64
import configparser
import re
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import grpc
import httpx
import pytest
import yaml

from fluxline.fleet.local import EXIT_GRACE_S
from fluxline.otel import CLOSE_S
from fluxline.server.rpc import image_gen_pb2 as pb
from fluxline.server.rpc.image_gen_pb2_grpc import ImageGenStub
from fluxline.server.serve import ANSWER_GRACE_S
from fluxline.settings import Settings, load_settings
from tests.image import Image, instructions

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "server" / "Dockerfile"
UNIT = ROOT / "deploy" / "fluxline.service"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCUMENT = (ROOT / "docs" / "deploy.md").read_text()
LAST_WORDS_S = EXIT_GRACE_S + 2 * ANSWER_GRACE_S + CLOSE_S
"""Workers end; HTTP and gRPC answer; spans leave."""
KEY = {"api-key": "client1"}


def said(name):
    """The rests of all instructions of that name."""
    return [rest for instruction, rest in instructions(DOCKERFILE) if instruction == name]


def variables():
    """What the image sets."""
    pairs = (pair.partition("=") for rest in said("ENV") for pair in rest.split())
    return {name: value for name, _, value in pairs}


def unit():
    """The sections of the systemd unit."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return parser


def test_the_documented_build_finds_its_dockerfile():
    (line,) = re.findall(r"^docker build -t flux-server -f .*", DOCUMENT, re.MULTILINE)
    words = shlex.split(line)

    assert (ROOT / words[words.index("-f") + 1]).samefile(DOCKERFILE)
    assert (ROOT / "Dockerfile").samefile(DOCKERFILE)  # what docker build takes by itself
    assert words[-1] == "."


def test_the_documented_run_publishes_what_is_served():
    (command,) = re.findall(r"^(docker run --gpus all (?:.*\\\n)*.*)", DOCUMENT, re.MULTILINE)
    words = shlex.split(command)
    published = {words[k + 1] for k, word in enumerate(words) if word == "-p"}

    settings = load_settings_of(variables())

    assert published == {f"{p}:{p}" for p in (settings.port, settings.grpc_port)}
    assert said("EXPOSE") == [f"{settings.port} {settings.grpc_port}"]
    assert "API_KEYS=client1,client2" in words


def load_settings_of(given):
    """The settings of a server that finds these variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            if name.startswith("FLUXLINE_"):
                patch.setenv(name, value)
        return load_settings()


def test_whatever_goes_into_the_image_is_sent_to_the_builder():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for rest in said("COPY")
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }

    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)
    assert "*" in lines


@pytest.mark.parametrize(
    "path",
    [
        "server/Dockerfile",
        "compose.yaml",
        "deploy/fluxline.service",
        "deploy/fluxline.env",
        "docs/deploy.md",
    ],
)
def test_every_variable_is_an_option(path):
    found = set(re.findall(r"FLUXLINE_[A-Z_]+", (ROOT / path).read_text()))

    assert found
    assert {name.removeprefix("FLUXLINE_").lower() for name in found} <= set(Settings.model_fields)


def test_the_sample_of_options_is_read_as_it_stands_and_uncommented():
    text = (ROOT / "deploy" / "fluxline.env").read_text()
    given = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", text, re.MULTILINE))

    settings = load_settings_of(given)

    assert given.keys() - {f"FLUXLINE_{name.upper()}" for name in Settings.model_fields} == {
        "API_KEYS"
    }
    assert (settings.host, settings.grpc_port) == ("127.0.0.1", 50051)


def test_compose_runs_the_image_with_a_key_and_time_to_finish():
    server = COMPOSE["services"]["fluxline"]
    settings = load_settings_of(variables())

    assert server["build"]["dockerfile"] == "server/Dockerfile"
    assert server["build"]["args"].keys() == {rest.partition("=")[0] for rest in said("ARG")}
    assert server["ports"] == [f"{p}:{p}" for p in (settings.port, settings.grpc_port)]
    assert server["environment"]["API_KEYS"].startswith("${API_KEYS:?")
    drain_s = server["environment"]["FLUXLINE_DRAIN_S"]
    assert float(server["stop_grace_period"].removesuffix("s")) > drain_s + LAST_WORDS_S


def test_compose_names_nothing_that_it_does_not_have():
    services = COMPOSE["services"]
    mounts = {
        mount.partition(":")[0]
        for service in services.values()
        for mount in service.get("volumes", [])
    }

    assert mounts == COMPOSE["volumes"].keys()
    for needed, how in services["fluxline"]["depends_on"].items():
        assert services[needed]["profiles"]
        assert not how["required"]
        assert (how["condition"] == "service_healthy") == ("healthcheck" in services[needed])


def test_the_unit_starts_the_server_and_waits_for_its_last_answer():
    service = unit()["Service"]
    program, command, *flags = shlex.split(service["ExecStart"])
    drain_s = Settings.model_fields["drain_s"].default

    assert (Path(program).name, command, flags) == ("fluxline", "serve", [])
    assert service["EnvironmentFile"] in DOCUMENT
    assert f"/var/lib/{service['StateDirectory']}" in DOCUMENT
    assert float(service["TimeoutStopSec"]) > drain_s + LAST_WORDS_S
    assert service["KillMode"] == "mixed"  # a worker that is told too would drop what it draws


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    copy = tmp_path / UNIT.name
    program = shlex.split(unit()["Service"]["ExecStart"])[0]
    copy.write_text(UNIT.read_text().replace(program, "/bin/true"))

    verify = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)

    assert (verify.returncode, verify.stderr) == (0, "")


# ---- built, as far as that goes without an engine


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The image, with everything installed. Takes minutes."""
    place = tmp_path_factory.mktemp("build")
    context = place / "context"
    context.mkdir()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        source = ROOT / line.removeprefix("!")
        if line.startswith("!") and source.is_dir():
            shutil.copytree(source, context / source.name)
        elif line.startswith("!"):
            shutil.copy(source, context)
    with pytest.MonkeyPatch.context() as patch:
        if wheels := wheels_of_this_machine():
            patch.setenv("UV_FIND_LINKS", wheels)
            return Image(DOCKERFILE, context, place, TORCH="")
        return Image(DOCKERFILE, context, place)


def wheels_of_this_machine():
    """Where pip was told to look for torch, on a machine that cannot fetch it."""
    told = [sys.executable, "-m", "pip", "config", "list"]
    found = re.search(
        r"find-links='(.+)'", subprocess.run(told, capture_output=True, text=True).stdout
    )
    return found and found[1]


def begin(image, **variables):
    """Start the command of a container, as `docker run -e` would."""
    return subprocess.Popen(
        [*image.entrypoint, *image.command],
        cwd=image.folder,
        env={**image.environment, "HOME": str(image.volume), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_container_without_a_key_says_what_it_lacks(image):
    process = begin(image, FLUXLINE_PORT=str(free_port()))
    _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "there is no key" in err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_container_draws_answers_both_ports_and_stops_when_told(image):
    port, grpc_port = free_port(), free_port()
    ports = {"FLUXLINE_PORT": str(port), "FLUXLINE_GRPC_PORT": str(grpc_port)}
    process = begin(image, API_KEYS="client1,client2", **ports)
    try:
        assert f"listens on http://0.0.0.0:{port} and for gRPC on port {grpc_port}" in (
            process.stdout.readline()
        )
        checked = subprocess.run(image.healthcheck, env={**image.environment, **ports})
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as http:
            live = http.get("/health/live")
            assert process.stdout.readline().startswith("ready: mini")
            body = {"prompt": "a red fox", "size": "256x256", "steps": 2}
            refused = http.post("/v1/images/generations", json=body)
            drawn = http.post("/v1/images/generations", json=body, headers=KEY)
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            pong = ImageGenStub(channel).Ping(pb.PingRequest(), metadata=list(KEY.items()))
        process.terminate()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()

    assert (checked.returncode, live.status_code, refused.status_code) == (0, 200, 401)
    assert drawn.status_code == 200, drawn.text + err
    assert base64.b64decode(drawn.json()["data"][0]["b64_json"]).startswith(b"\x89PNG")
    assert pong.message == "Pong"
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert (image.volume / "jobs.sqlite3").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_holds_the_pinned_versions_and_no_installer(image):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.lower().replace("_", "-") for line in lines}
    (folder,) = image.root.glob("opt/fluxline/lib/python3.*/site-packages")
    found = {
        found.name.lower().replace("_", "-"): found.version.partition("+")[0]  # of 2.13.0+cpu
        for found in distributions(path=[str(folder)])
    }

    assert {"fluxline", "torch", "grpcio", "psycopg"} <= found.keys()
    assert not {"pip", "uv", "pytest"} & found.keys()
    assert {name for name, version in found.items() if f"{name}=={version}" not in pins} == {
        "fluxline"
    }
    assert image.user.isdigit()  # so that Kubernetes sees that it is not root
    assert image.user != "0"
