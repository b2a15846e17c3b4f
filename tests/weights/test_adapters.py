"""LoRAs of the hub, against one on this machine: what is fetched, and what is refused before."""

import pytest
from huggingface_hub import constants
from safetensors.torch import save

from fluxline.errors import LoadError, UnknownLora
from fluxline.weights.adapters import MOST_BYTES, fetched_adapter, read_adapter
from tests.hub import REPO, Hub
from tests.lora_files import random_lora

INK, OIL = (save(random_lora({"a": (8, 8)}, seed=seed)) for seed in (0, 1))
USUAL = "pytorch_lora_weights.safetensors"
PEFT = "adapter_model.safetensors"


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Have a hub with these files, and an empty cache of it."""
    hubs = []

    def offer(files):
        hub = Hub(files)
        hubs.append(hub)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        return hub

    yield offer
    for hub in hubs:
        hub.close()


def fetched(hub):
    """The files that came over the line."""
    return [path.rpartition("/")[2] for verb, path, _ in hub.asked
            if verb == "GET" and "/resolve/" in path]  # fmt: skip


def test_of_a_whole_model_the_lora_at_its_root_alone_is_fetched(offer):
    hub = offer(
        {
            "transformer/part-1.safetensors": b"gigabytes",
            "vae/model.safetensors": b"more",
            "README.md": b"words",
            "ink.safetensors": INK,
        }
    )
    file = fetched_adapter(REPO, reach_out=True)
    assert fetched(hub) == ["ink.safetensors"]
    assert file.read_bytes() == INK


def test_what_is_here_is_not_asked_for_again(offer):
    hub = offer({"ink.safetensors": INK})
    first = fetched_adapter(REPO, reach_out=True)
    hub.asked.clear()
    assert fetched_adapter(REPO, reach_out=True) == first
    assert fetched_adapter(REPO, reach_out=False) == first
    assert hub.asked == []


def test_the_file_that_diffusers_would_take_goes_before_others(offer):
    hub = offer({"ink.safetensors": INK, USUAL: OIL})
    assert fetched_adapter(REPO, reach_out=True).read_bytes() == OIL
    assert fetched(hub) == [USUAL]


def test_of_several_one_must_be_named_and_may_be(offer):
    hub = offer({"ink.safetensors": INK, "oil.safetensors": OIL, "deep/er.safetensors": OIL})
    with pytest.raises(LoadError) as refused:
        fetched_adapter(REPO, reach_out=True)
    assert refused.value.message == (
        "the root of its repository must hold one adapter; there is ink.safetensors, "
        f"oil.safetensors; name the one that is meant: {REPO}/FILE.safetensors"
    )
    assert fetched(hub) == []

    assert fetched_adapter(f"{REPO}/oil.safetensors", reach_out=True).read_bytes() == OIL
    assert fetched(hub) == ["oil.safetensors"]
    with pytest.raises(LoadError, match=r"name the one that is meant"):
        fetched_adapter(REPO, reach_out=True)  # as before somebody named one
    with pytest.raises(UnknownLora, match="this server fetches none"):
        fetched_adapter(REPO, reach_out=False)
    with pytest.raises(LoadError, match=r"no who.safetensors at the root"):
        fetched_adapter(f"{REPO}/who.safetensors", reach_out=True)
    with pytest.raises(UnknownLora):
        fetched_adapter(f"{REPO}/deep/er.safetensors", reach_out=True)


def test_one_that_is_too_large_is_refused_by_its_name_and_size_before_it_comes(offer):
    hub = offer({"whole.safetensors": INK})
    hub.sizes["whole.safetensors"] = 6 * MOST_BYTES
    with pytest.raises(LoadError, match=r"whole.safetensors is of 24 GiB; at most 4 are read"):
        fetched_adapter(REPO, reach_out=True)
    assert fetched(hub) == []


def test_a_configuration_comes_with_the_file_that_it_is_of(offer):
    offer({PEFT: INK, "adapter_config.json": b'{"lora_alpha": 8}'})
    _, about = read_adapter(fetched_adapter(REPO, reach_out=True))
    assert about["lora_adapter_metadata"] == '{"lora_alpha": 8}'


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("somebody/else", r"the hub does not give it \(404\)"),
        ("some--body/else", "no LoRA 'some--body/else' here"),
        ("../../etc", "no LoRA"),
        ("somebody/" + "x" * 100, "could not be fetched"),
    ],
)
def test_what_the_hub_does_not_have_is_told(offer, name, words):
    offer({})
    with pytest.raises(UnknownLora, match=words):
        fetched_adapter(name, reach_out=True)


def test_a_repository_without_an_adapter_is_told(offer):
    offer({"README.md": b"words"})
    with pytest.raises(LoadError, match="must hold one adapter; there is none"):
        fetched_adapter(REPO, reach_out=True)


def test_a_hub_that_is_away_is_told(offer):
    offer({}).close()
    with pytest.raises(UnknownLora, match="could not be fetched"):
        fetched_adapter(REPO, reach_out=True)


def test_who_may_not_reach_out_does_not(offer):
    hub = offer({"ink.safetensors": INK})
    with pytest.raises(UnknownLora, match="this server fetches none"):
        fetched_adapter(REPO, reach_out=False)
    assert hub.asked == []
