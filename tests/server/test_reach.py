"""No caller makes the server open a line or a file of the caller's choosing."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxline.storage import open_pictures

FOX = {"prompt": "a fox"}
DOORS = (
    "/v1/images/generations",
    "/v1/jobs",
    "/generate",
    "/v1/batches/generate",
    "/v1/flux-dev",
    "/submit-request",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
    "/sdapi/v1/png-info",
    "/sdapi/v1/options",
    "/apply-lora",
)
FIELDS = (
    *("image", "images", "ref_images", "mask", "init_images", "input_image", "image_prompt"),
    *("control_image", "webhook_url", "lora", "loras", "lora_name", "model", "sd_model_checkpoint"),
    *("sampler", "svg", "user"),
)
NAMES = ("..", ".", "%2e%2e", "\0", "‥", "／", "/", "\\", "etc", "passwd", "~", "jobs.sqlite3", "")


def addresses(port):
    yield f"http://127.0.0.1:{port}/"
    yield f"http://[::ffff:127.0.0.1]:{port}/"
    yield f"http://0177.0.0.1:{port}/"
    yield f"http://2130706433:{port}/"
    yield f"http://ok\\@127.0.0.1:{port}/"
    yield f"http://elsewhere#@127.0.0.1:{port}/"
    yield f"//127.0.0.1:{port}/"
    yield f"ftp://127.0.0.1:{port}/"
    yield f"gopher://127.0.0.1:{port}/"
    yield f"s3://bucket?endpoint=http://127.0.0.1:{port}"


async def test_no_address_in_a_request_is_gone_to(http):
    visitors = []
    listener = await asyncio.start_server(lambda *line: visitors.append(line), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    headers = {"host": f"127.0.0.1:{port}", "x-forwarded-host": f"127.0.0.1:{port}"}
    plain = f"http://127.0.0.1:{port}/"
    asked: list[tuple[str, object]] = [(field, plain) for field in FIELDS]
    asked += [("image", [plain]), ("image", {"url": plain})]
    asked += [("image", address) for address in addresses(port)]
    for door in DOORS:
        for field, value in asked:
            answer = await http.post(door, json={**FOX, field: value}, headers=headers)
            assert answer.status_code < 500 or answer.status_code == 501, (door, field, value)
    await asyncio.sleep(0.1)
    listener.close()

    assert visitors == []


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def pictures(folder):
    return open_pictures(str(folder))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file beneath a folder but the database, and what is in it."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "jobs.sqlite3" not in path.name
    }


async def test_no_name_in_a_request_is_a_path(http, tmp_path, folder):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (folder / "link.png").symlink_to(secret)
    before = tree(tmp_path)
    loop = asyncio.get_running_loop()

    async def ask(name: str) -> None:
        raw = json.dumps({**FOX, "model": name, "sd_model_checkpoint": name, "filename": name})
        sent = {"content": raw, "headers": {"content-type": "application/json"}}
        quoted = httpx.QueryParams({"x": name}).__str__()[2:].replace("+", "%20")
        for request in (
            http.post("/v1/jobs", **sent),
            http.post("/sdapi/v1/options", **sent),
            http.get(f"/v1/models/{quoted}"),
            http.get(f"/v1/jobs/{quoted}"),
            http.get(f"/files/{quoted}?expires=99999999999&signature=0"),
            http.get(f"/v1/get_result?id={quoted}"),
            http.get(f"/request-status/{quoted}"),
            http.delete(f"/cancel-request/{quoted}"),
        ):
            answer = await request
            assert answer.status_code < 500
            assert b"secret" not in answer.content.replace(name.encode("utf-8", "replace"), b"")

    @settings(
        max_examples=60,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6), st.sampled_from(["", "/"]))
    def no_name_is_a_path(parts, between):
        asyncio.run_coroutine_threadsafe(ask(between.join(parts)), loop).result(30)

    await asyncio.to_thread(no_name_is_a_path)

    assert tree(tmp_path) == before
