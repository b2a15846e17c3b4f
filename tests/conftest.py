"""Models poured into the tests: random small ones, and the embedded one."""

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import FluxControlPipeline, FluxFillPipeline, FluxKontextPipeline

from fluxline.engine.build import open_model
from tests.compatibility import Proofs
from tests.models.flux1.oracle import small_config
from tests.postgres import Postgres
from tests.random_clip import save_random_clip
from tests.random_flux import save_random_controlnet, save_random_flux, save_random_redux
from tests.seaweed import Seaweed


def pytest_configure(config):
    config.pluginmanager.register(Proofs(), "proofs")


@pytest.fixture
def proofs(request):
    """What the tests of this run prove."""
    return request.config.pluginmanager.get_plugin("proofs")


def pytest_collection_finish():
    """Let no later collection of garbage look at what was imported: each took half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models are so small here that torch's threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread_again():
    """An engine that measures chooses for the whole process: not for the next test."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory):
    """Where servers started by the tests keep their jobs."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server. Who stops it starts it again."""
    postgres = Postgres()
    yield postgres
    postgres.close()


@pytest.fixture(scope="session")
def seaweed():
    """An S3 server. Who kills it starts it again."""
    if sys.platform != "linux":
        pytest.skip("SeaweedFS is packaged for Linux alone")
    seaweed = Seaweed()
    yield seaweed
    seaweed.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_url(request, tmp_path):
    """A new and empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.sqlite3"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture(scope="session")
def schnell_folder(tmp_path_factory):
    """A schnell-class random model: no guidance, static shift, head_dim 64."""
    config = small_config(head_dim=64, heads=2, double=1, single=2)
    return save_random_flux(tmp_path_factory.mktemp("schnell"), config)


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory):
    """A dev-class random model: guidance, dynamic shift, head_dim 128."""
    config = small_config(guidance=True, head_dim=128, heads=2, double=1, single=2)
    return save_random_flux(tmp_path_factory.mktemp("dev"), config, dynamic_shift=True)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A random CLIP of 24 px."""
    return save_random_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def schnell(schnell_folder):
    return open_model(str(schnell_folder), "cpu")


@pytest.fixture(scope="session")
def dev(dev_folder):
    return open_model(str(dev_folder), "cpu")


@pytest.fixture(scope="session")
def kontext_folder(tmp_path_factory):
    """One that looks at pictures as tokens; its index says that it is a Kontext."""
    config = small_config(guidance=True, head_dim=64, heads=2, double=1, single=2)
    folder = tmp_path_factory.mktemp("sees")
    return save_random_flux(
        folder,
        config,
        dynamic_shift=True,
        kind=FluxKontextPipeline,
        heed=4.0,
        reference_sizes=[[64, 64], [80, 48], [48, 80]],
    )


@pytest.fixture(scope="session")
def fill_folder(tmp_path_factory):
    """One that fills a part of a picture; its channels say so."""
    config = small_config(guidance=True, head_dim=64, heads=2, double=1, single=2, in_channels=384)
    folder = tmp_path_factory.mktemp("gap")
    return save_random_flux(folder, config, dynamic_shift=True, kind=FluxFillPipeline)


@pytest.fixture(scope="session")
def depth_folder(tmp_path_factory):
    """One that draws after a map; its folder's name says which."""
    config = small_config(guidance=True, head_dim=64, heads=2, double=1, single=2, in_channels=128)
    folder = tmp_path_factory.mktemp("depth")
    return save_random_flux(folder, config, dynamic_shift=True, kind=FluxControlPipeline)


@pytest.fixture(scope="session")
def redux_folder(tmp_path_factory):
    """A dev-class model with a Redux in its folder."""
    config = small_config(guidance=True, head_dim=64, heads=2, double=1, single=2)
    folder = tmp_path_factory.mktemp("reads")
    save_random_flux(folder, config, dynamic_shift=True, heed=4.0)
    return save_random_redux(folder, config)


@pytest.fixture(scope="session")
def controlnet_folder(tmp_path_factory):
    """A deeper dev-class model and in its folder a ControlNet with fewer blocks."""
    whole = small_config(guidance=True, head_dim=64, heads=2, double=3, single=4)
    folder = tmp_path_factory.mktemp("steered")
    save_random_flux(folder, whole, dynamic_shift=True)
    less = small_config(guidance=True, head_dim=64, heads=2, double=2, single=2)
    return save_random_controlnet(folder, less)


@pytest.fixture(scope="session")
def kontext(kontext_folder):
    return open_model(str(kontext_folder), "cpu")


@pytest.fixture(scope="session")
def fill(fill_folder):
    return open_model(str(fill_folder), "cpu")


@pytest.fixture(scope="session")
def depth(depth_folder):
    return open_model(str(depth_folder), "cpu")


@pytest.fixture(scope="session")
def redux(redux_folder):
    return open_model(str(redux_folder), "cpu")


@pytest.fixture(scope="session")
def controlnet(controlnet_folder):
    return open_model(str(controlnet_folder), "cpu")
