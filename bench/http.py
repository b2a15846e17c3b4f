"""What the server costs: how soon it answers, and what HTTP adds to the engine.

    python -m bench.http [--starts 7] [--rounds 30]

First: seconds from the start of `fluxline serve` to the first 200 of `/health/live`, the median of
several starts, each in a fresh folder. Then one picture of the embedded model, asked in turn of
`fluxline.Engine` in this process and of a running server over a kept-alive connection, as base64
and as a link, at the default steps and in one step: medians, 95th percentiles, and the median of
what each answer took longer than the engine's in the same round.
"""

import argparse
import base64
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from fluxline.engine import Engine
from fluxline.engine.tune import keep_memory
from fluxline.images.recipe import read_recipe

PROMPT = "a red fox"
LOOK_S = 0.002  # between two tries to be answered
PAUSE_S = 0.05  # between two pictures, in which the threads of the one before fall asleep


def main() -> None:
    """Measure and print."""
    options = _options()
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    starts = [_start_s() for _ in range(options.starts)]
    print(f"process start to /health/live, {_spread(starts)}, {len(starts)} starts")
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as port:
        line = http.client.HTTPConnection("127.0.0.1", port)
        threads = _threads(line)
        print(f"threads of a forward, on both sides: {threads}")
        keep_memory()
        engine = Engine("mini", threads=threads)
        line.close()  # the server has hung up meanwhile; the next request opens it anew
        for what, params in (("default steps", {}), ("1 step", {"steps": 1})):
            ways: dict[str, Callable[[int], object]] = {
                "engine in process": partial(_drawn, engine, params),
                "b64_json": partial(_posted, line, params, "b64_json"),
                "url": partial(_posted, line, params, "url"),
            }
            _compare(what, ways, options.rounds)
        line.close()
        engine.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=30)
    return parser.parse_args()


def _start_s() -> float:
    """Seconds until a fresh server answers that it lives."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with _process(Path(folder), port):
            while not _lives(port):
                time.sleep(LOOK_S)
            return time.perf_counter() - began


def _lives(port: int) -> bool:
    line = http.client.HTTPConnection("127.0.0.1", port)
    try:
        line.request("GET", "/health/live")
        return line.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        line.close()


@contextmanager
def _served(folder: Path) -> Iterator[int]:
    """A server that is ready to draw; its port."""
    with _process(folder, 0) as process:
        assert process.stdout is not None
        address = re.search(r"listens on http://\S+:(\d+)", process.stdout.readline())
        assert address, "the server said no address"
        assert process.stdout.readline().startswith("ready")
        yield int(address[1])


@contextmanager
def _process(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    words = ["serve", "--port", str(port), "--data", str(folder), "--log-level", "error"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxline", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "API_KEYS"},
    )
    try:
        yield process
    finally:
        workers = psutil.Process(process.pid).children()
        process.terminate()
        process.communicate(timeout=30)
        psutil.wait_procs(workers, timeout=30)  # the next start shall have the machine to itself


def _drawn(engine: Engine, params: dict[str, int], seed: int) -> bytes:
    return engine.generate(PROMPT, seed=seed, **params)[0].data


def _posted(
    line: http.client.HTTPConnection, params: dict[str, int], form: str, seed: int
) -> bytes:
    asked = {"prompt": PROMPT, "seed": seed, "response_format": form, **params}
    headers = {"content-type": "application/json"}
    line.request("POST", "/v1/images/generations", json.dumps(asked), headers)
    response = line.getresponse()
    answer = response.read()
    assert response.status == 200, answer
    return answer


def _threads(line: http.client.HTTPConnection) -> int:
    """How many the server chose: with another count the engine here would be no measure."""
    answer = json.loads(_posted(line, {}, "b64_json", 0))
    recipe = read_recipe(base64.b64decode(answer["data"][0]["b64_json"]))
    assert recipe is not None
    assert recipe.receipt is not None
    return recipe.receipt.threads


def _compare(what: str, ways: dict[str, Callable[[int], object]], rounds: int) -> None:
    took: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(rounds + 2):  # the first two are a warm-up
        for way, act in ways.items():
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            act(seed)
            took[way].append(time.perf_counter() - began)
    took = {way: seconds[2:] for way, seconds in took.items()}
    base = next(iter(took.values()))
    print(f"one picture, {what}, {rounds} rounds:")
    for way, seconds in took.items():
        more = statistics.median(a - b for a, b in zip(seconds, base, strict=True))
        added = "" if seconds is base else f", {1000 * more:+.1f} ms"
        print(f"  {way:18} {_spread(seconds)}{added}")


def _spread(seconds: list[float]) -> str:
    """The middle and the 95th percentile."""
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return f"median {1000 * statistics.median(ordered):.1f} ms, p95 {1000 * late:.1f} ms"


if __name__ == "__main__":
    main()
