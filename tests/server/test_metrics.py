"""/metrics: what people, scrapers and the old client read, and that no caller can make it grow."""

import asyncio
import re

import httpx

from fluxline.jobs import KeyRing
from fluxline.server.app import create_app
from tests.server.conftest import LIMITS

URL, JOBS = "/v1/images/generations", "/v1/jobs"
SCRAPER = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5,*/*;q=0.1"}


async def scraped(http):
    text = (await http.get("/metrics", headers=SCRAPER)).text
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


async def test_a_json_client_reads_five_numbers(http):
    said = (await http.get("/metrics")).json()

    assert set(said) == {"cpu_percent", "ram_used_mb", "gpu_used_mb", "worker_alive", "grpc_alive"}
    assert (said["worker_alive"], said["gpu_used_mb"]) == (True, 0)
    assert said["ram_used_mb"] > 10
    assert said["grpc_alive"] is False


async def test_grpc_is_told_alive_where_it_is_served(service, links, webhooks, uploads):
    app = create_app(service, links, webhooks, uploads, max_n=4, **LIMITS, has_grpc=True)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/metrics")).json()["grpc_alive"] is True


async def test_a_scraper_reads_what_happened(http):
    await http.post(URL, json={"prompt": "a fox", "n": 2})
    await http.post(URL, json={"prompt": "blown"})
    await http.post(URL, json={"prompt": "a fox", "width": 9999})
    told = await scraped(http)

    assert told['fluxline_requests_total{door="openai",outcome="done"}'] == 1
    assert told['fluxline_requests_total{door="openai",outcome="failed"}'] == 1
    assert told['fluxline_rejected_total{reason="invalid_value"}'] == 1
    assert told['fluxline_images_total{backend="native",model="fake"}'] == 2
    assert told['fluxline_stage_seconds_sum{stage="denoise"}'] == 1.0
    assert told['fluxline_engine_rows_total{profile="fake",replica="0"}'] == 6
    assert told["fluxline_queue_depth"] == 0
    assert told["fluxline_replicas_ready"] == 1
    assert (await http.get("/metrics/prometheus")).text.count("# TYPE") > 15


async def test_what_waits_is_told_with_its_age_and_a_cancel_with_its_phase(http, engine):
    job_id = (await http.post(JOBS, json={"prompt": "hang"})).json()["id"]
    while not engine.started:
        await asyncio.sleep(0.002)
    running = await scraped(http)
    await http.post(f"{JOBS}/{job_id}/cancel")
    while (await http.get(f"{JOBS}/{job_id}")).json()["status"] != "cancelled":
        await asyncio.sleep(0.002)
    over = await scraped(http)

    assert running["fluxline_jobs_running"] + running["fluxline_queue_depth"] == 1
    assert running["fluxline_queue_cost"] > 0
    phases = re.findall(r"fluxline_cancelled_total\{phase=\"(\w+)\"\}", " ".join(over))
    assert phases in (["running"], ["waiting"])


async def test_no_caller_makes_the_series_grow(http):
    await http.post(URL, json={"prompt": "a fox"})
    before = set(await scraped(http))
    for k in range(50):
        await http.get(f"/nowhere/{k}")
        await http.post(URL, json={"prompt": f"fox {k}", "model": f"who {k}", "user": f"u {k}"})
    grown = set(await scraped(http)) - before

    assert all(name.startswith("fluxline_rejected") for name in grown)
    assert len(grown) <= 2
    assert not any("fox" in name or "who" in name for name in grown)


async def test_beyond_this_machine_metrics_ask_for_any_key(
    service, links, webhooks, uploads, database
):
    ring = KeyRing(database, given=["k"])
    app = create_app(
        service, links, webhooks, uploads, max_n=4, ring=ring, opens_metrics=False, **LIMITS
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers={"api-key": "k"})).status_code == 200
