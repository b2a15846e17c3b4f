"""A small random model of each class."""

import pytest
from diffusers import Flux2KleinKVPipeline

from fluxline.engine.build import open_model
from tests.models.flux2.oracle import small_config
from tests.random_flux2 import THOUGHTS, save_random_dev, save_random_klein

SMALL = {"double": 1, "single": 2, "text_dim": 3 * THOUGHTS}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Where each lies: klein, its base and the one that remembers of head_dim 64, dev of 128."""
    root = tmp_path_factory.mktemp("flux2")
    config = small_config(head_dim=64, **SMALL)
    dev = small_config(guidance=True, **SMALL)
    return {
        "klein": save_random_klein(root / "klein", config, is_distilled=True),
        "base": save_random_klein(root / "base", config, is_distilled=False),
        "kv": save_random_klein(root / "kv", config, Flux2KleinKVPipeline),
        "dev": save_random_dev(root / "dev", dev),
    }


@pytest.fixture(scope="session")
def models(folders):
    return {name: open_model(str(folder), "cpu") for name, folder in folders.items()}
