"""A folder of LoRAs: what it says of each without reading a tensor."""

import hashlib
import json
import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from fluxline.errors import UnknownLora
from fluxline.loras import Hashes, LoraFolder, hub_name
from tests.lora_files import random_lokr, random_lora

LAYERS = {"a": (8, 8), "b": (8, 16)}


def save(path, *, about=None, rank=4, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_lora(LAYERS, rank=rank, seed=seed), path, about)
    return path


def only(folder):
    [info] = LoraFolder(folder).infos()
    return info


def test_a_folder_says_of_each_file_its_name_size_rank_and_preview(tmp_path):
    file = save(tmp_path / "styles" / "ink.safetensors", rank=6)
    (tmp_path / "styles" / "ink.png").write_bytes(b"a picture")

    info = only(tmp_path)

    assert (info.name, info.path, info.rank) == ("styles/ink", file, 6)
    assert info.size_bytes == file.stat().st_size
    assert info.preview == tmp_path / "styles" / "ink.png"


def test_a_lokr_has_the_rank_of_its_factors_and_none_where_they_are_whole(tmp_path):
    for name, rank in (("thin", 1), ("whole", 999)):
        save_file(random_lokr(LAYERS, factor=2, rank=rank), tmp_path / f"{name}.safetensors")
    assert [info.rank for info in LoraFolder(tmp_path).infos()] == [1, None]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"trigger": "ink drawing"}, ("ink drawing",)),
        ({"modelspec.trigger_phrase": "inkd, on paper"}, ("inkd", "on paper")),
        (
            {"ss_tag_frequency": json.dumps({"10_ink": {"inkd": 20, "fox": 3, "paper": 20}})},
            ("inkd", "paper"),
        ),
        ({"ss_tag_frequency": "{"}, ()),
        ({}, ()),
    ],
)
def test_trigger_words_are_what_the_trainer_wrote(tmp_path, about, words):
    save(tmp_path / "ink.safetensors", about=about)
    assert only(tmp_path).trigger_words == words


@pytest.mark.parametrize(
    ("ending", "text", "words"),
    [
        (".txt", "ink drawing, on paper\n", ("ink drawing", "on paper")),
        (".json", '{"activation text": "inkd"}', ("inkd",)),
        (".civitai.info", '{"trainedWords": ["inkd", "on paper"]}', ("inkd", "on paper")),
        (".json", "[1]", ("said",)),
    ],
)
def test_trigger_words_in_a_file_beside_it_go_before_the_trainers(tmp_path, ending, text, words):
    file = save(tmp_path / "ink.safetensors", about={"trigger": "said"})
    file.with_suffix(ending).write_text(text)
    assert only(tmp_path).trigger_words == words


def test_a_folder_is_looked_through_anew_at_every_question(tmp_path):
    folder = LoraFolder(tmp_path)
    assert folder.names() == []
    file = save(tmp_path / "ink.safetensors")
    assert [info.rank for info in folder.infos()] == [4]
    save(file, rank=5)
    os.utime(file, ns=(1, 1))
    assert [info.rank for info in folder.infos()] == [5]
    file.unlink()
    assert folder.infos() == []


def test_a_file_that_diffusers_or_peft_saved_is_called_as_its_folder(tmp_path):
    save(tmp_path / "ink" / "pytorch_lora_weights.safetensors")
    save(tmp_path / "styles" / "oil" / "adapter_model.safetensors")
    assert LoraFolder(tmp_path).names() == ["ink", "styles/oil"]


def test_the_last_part_of_a_name_is_enough_where_it_is_the_only_one(tmp_path):
    file = save(tmp_path / "styles" / "ink.safetensors")
    folder = LoraFolder(tmp_path)
    assert folder.find("ink") == folder.find("styles/ink") == file

    save(tmp_path / "other" / "ink.safetensors")
    with pytest.raises(UnknownLora, match="several LoRAs 'ink': other/ink, styles/ink"):
        folder.find("ink")


def test_an_unknown_name_is_answered_with_those_that_are_like_it(tmp_path):
    for name in ("ink-drawing", "oil", "watercolour"):
        save(tmp_path / f"{name}.safetensors")

    with pytest.raises(
        UnknownLora, match=r"no LoRA 'ink_drawing' here; did you mean ink-drawing\?"
    ):
        LoraFolder(tmp_path).find("ink_drawing")
    with pytest.raises(UnknownLora, match="there is ink-drawing, oil, watercolour"):
        LoraFolder(tmp_path).find("zzz")


@pytest.mark.parametrize(
    "broken", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b"\5\0\0\0\0\0\0\0{"]
)
def test_a_broken_file_is_listed_without_a_rank(tmp_path, broken):
    (tmp_path / "torn.safetensors").write_bytes(broken)
    assert only(tmp_path).rank is None


def test_there_need_be_no_folder(tmp_path):
    assert LoraFolder(None).infos() == []
    assert LoraFolder(tmp_path / "none").names() == []


def test_a_hash_is_of_the_tensors_alone_and_known_again(tmp_path):
    """As Civitai and A1111 have it: what a file says of itself does not count."""
    one = save(tmp_path / "one.safetensors")
    two = save(tmp_path / "two.safetensors", about={"trigger": "ink"})
    three = save(tmp_path / "three.safetensors", seed=1)
    hashes = Hashes()

    data = one.read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    assert hashes.of(one) == hashlib.sha256(tensors).hexdigest()[:12]
    assert hashes.of(one) == hashes.of(two) != hashes.of(three)
    save_file({"a": torch.ones(2)}, one)
    assert hashes.of(one) != hashes.of(two)


def test_a_name_is_found_however_its_accents_are_spelled(tmp_path):
    file = save(tmp_path / "aquare\u0301lle.safetensors")
    assert LoraFolder(tmp_path).names() == ["aquar\u00e9lle"]
    assert LoraFolder(tmp_path).find("aquare\u0301lle") == file
    assert LoraFolder(tmp_path).find("aquar\u00e9lle") == file


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_no_text_is_passed_over(tmp_path):
    save(tmp_path / "ink.safetensors")
    with open(os.fsencode(tmp_path) + b"/\xff.safetensors", "wb"):
        pass
    assert LoraFolder(tmp_path).names() == ["ink"]


def test_two_files_never_have_one_name(tmp_path):
    for name in ("ink", "ink/adapter_model", "ink/pytorch_lora_weights"):
        save(tmp_path / f"{name}.safetensors")
    assert LoraFolder(tmp_path).names() == ["ink", "ink/adapter_model", "ink/pytorch_lora_weights"]


def test_a_name_as_long_as_a_book_is_refused_at_once(tmp_path):
    save(tmp_path / "ink.safetensors")
    with pytest.raises(UnknownLora, match="there is ink") as refused:
        LoraFolder(tmp_path).find("ink" * 2**20)
    assert len(refused.value.message) < 2000


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("owner/name", ("owner/name", "")),
        ("owner/name/one.safetensors", ("owner/name", "one.safetensors")),
        ("owner/name/deep/one.safetensors", None),
        ("owner/name/../one.safetensors", None),
        ("../name", None),
        ("owner/..", None),
        ("own\u00e9r/name", None),
        ("name", None),
    ],
)
def test_what_a_name_means_on_the_hub(name, meant):
    assert hub_name(name) == meant


def test_a_hash_counts_what_peft_says_of_the_scale(tmp_path):
    file = save(tmp_path / "ink" / "adapter_model.safetensors")
    hashes, said = Hashes(), []
    for config in (None, '{"lora_alpha": 4}', '{"lora_alpha": 8}'):
        if config:
            file.with_name("adapter_config.json").write_text(config)
            os.utime(file.with_name("adapter_config.json"), ns=(len(said), len(said)))
        said.append(hashes.of(file))
    assert len(set(said)) == 3
