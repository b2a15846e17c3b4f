"""LoRAs through the engine: each picture with its own, in one batch, and none leaks."""

import io
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import save_file

from fluxline.ability import MOST_LORAS
from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.loras import Library, LoraSources
from fluxline.engine.scheduler import Budget
from fluxline.engine.ticket import new_request
from fluxline.errors import InvalidParams, RequestError, UnknownLora
from fluxline.images import read_recipe
from fluxline.request import LoraRef, Planned
from fluxline.weights.adapters import MOST_BYTES
from tests.lora_files import bfl_layers, linear_layers, random_lokr, random_lora
from tests.models.flux1.test_pipeline import draw_theirs
from tests.models.nearness import psnr
from tests.random_flux import TEXT_LENGTH

KOHYA = (".lora_down.weight", ".lora_up.weight")
TOGETHER = Budget(batch_tokens=2000, resident_tokens=8000)
ADAPTABLE = ("spec", "dtype", "adaptable", "read_adapter", "stage_of", "guide_stages")
ALONE = Budget(batch_tokens=1, resident_tokens=1)


@pytest.fixture(scope="module")
def folder(schnell, tmp_path_factory):
    """Two LoRAs of the transformer, one that is beside CLIP and T5 alone, and a LoKr."""
    folder = tmp_path_factory.mktemp("loras")
    sizes = bfl_layers(schnell.transformer.config)
    encoders = {
        f"{prefix}{name}": size
        for network, prefix in (("text_encoder", "te1."), ("text_encoder_2", "te3."))
        for name, size in linear_layers(schnell.adaptable[network]).items()
    }
    save_file(
        random_lora(sizes, prefix="diffusion_model.", by=0.5, seed=1), folder / "one.safetensors"
    )
    blocks = {name: size for name, size in sizes.items() if "_blocks" in name}
    save_file(
        random_lora(blocks, prefix="lora_unet_", ends=KOHYA, is_flat=True, rank=7, by=0.5, seed=2),
        folder / "two.safetensors",
    )
    save_file(
        random_lora(encoders, prefix="lora_", ends=KOHYA, is_flat=True, by=2.0, seed=3),
        folder / "words.safetensors",
    )
    save_file(
        random_lokr(sizes, prefix="diffusion_model.", factor=8, rank=999, by=0.5, seed=4),
        folder / "product.safetensors",
    )
    return folder


@pytest.fixture
def sources(folder):
    return LoraSources(folder=folder, paths=False, fetch=False)


@pytest.fixture
def engine(schnell, sources):
    with Engine(schnell, budget=TOGETHER, loras=sources) as engine:
        yield engine


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.data))).astype(np.int16)


def asked(seed, *loras, **params):
    return new_request("a fox", seed=seed, params={"steps": 3, "loras": loras, **params})


def planned(*requests):
    """One request for the pictures of many, so that all of them come at once."""
    plan = tuple(Planned(seed=r.seed, params=r.params) for r in requests)
    return replace(requests[0], plan=plan)


MIXTURES = [
    (),
    (("one", 1.0),),
    (("two", 0.8),),
    (("one", 0.5), ("two", -0.5)),
    (("words", 1.0),),
    (("words", 1.0), ("two", 1.0)),
    (("product", 1.0),),
    (("product", -0.4), ("one", 0.6)),
]


@pytest.mark.proves("mixed lora", "flux1")
def test_a_batch_of_any_mixture_equals_each_alone(schnell, sources, engine):
    """To one level of 255, as pictures without LoRA do."""
    requests = [asked(5, *loras) for loras in MIXTURES]
    requests.append(asked(5, ("one", 1.0), cfg_scale=2.0, negative_prompt="blue"))
    together = engine.submit(planned(*requests)).result()

    with Engine(schnell, budget=ALONE, loras=sources) as single:
        alone = [single.submit(r).result()[0] for r in requests]

    assert read_recipe(together[0].data).receipt.beside == len(requests) - 1
    for ours, solo in zip(together, alone, strict=True):
        gap = np.abs(pixels(ours) - pixels(solo))
        assert gap.max() <= 1
        assert np.mean(gap == 0) >= 0.999
    for one, picture in enumerate(alone):
        for other in alone[:one]:
            assert np.abs(pixels(picture) - pixels(other)).max() > 3, "LoRAs change pictures"


def test_a_request_without_lora_is_drawn_as_if_there_were_none(schnell_folder, sources):
    """To the byte, beside one with and after it. The batches are of equal size, so that only a
    LoRA could make a difference."""

    def pair(engine, *loras):
        return engine.submit(planned(asked(8), asked(9, *loras))).result()

    with Engine(str(schnell_folder), device="cpu", budget=TOGETHER, threads=1) as never:
        plain = [image.data for image in pair(never)]
    with Engine(
        str(schnell_folder), device="cpu", budget=TOGETHER, threads=1, loras=sources
    ) as engine:
        beside = pair(engine, ("one", 1.0), ("words", 1.0))
        after = pair(engine)

    assert beside[0].data == plain[0]
    assert beside[1].data != plain[1]
    assert [image.data for image in after] == plain


def test_strength_0_has_no_effect_and_no_cost(engine, schnell):
    [with_it] = engine.submit(asked(3, ("one", 0.0))).result()
    [without] = engine.submit(asked(3)).result()

    assert np.array_equal(pixels(with_it), pixels(without))
    assert read_recipe(with_it.data).receipt.loras == ()


@pytest.mark.parametrize("name", ["schnell", "dev"])
def test_a_picture_with_a_kohya_lora_of_clip_too_equals_diffusers(request, tmp_path, name):
    model, folder = request.getfixturevalue(name), request.getfixturevalue(f"{name}_folder")
    sizes = bfl_layers(model.transformer.config)
    blocks = {n: s for n, s in sizes.items() if "_blocks" in n and "linear1" not in n}
    clip = {
        f"text_model.{n}": s
        for n, s in linear_layers(model.adaptable["text_encoder"]).items()
        if "layers" in n
    }
    spelled = {"ends": KOHYA, "is_flat": True, "alpha": 3.0, "by": 1.0}
    tensors = random_lora(blocks, prefix="lora_unet_", **spelled)
    tensors |= random_lora(clip, prefix="lora_te1_", **spelled)
    save_file(tensors, tmp_path / "one.safetensors")
    params = {"steps": 3, "guidance": 2.5 if name == "dev" else None, "width": 64, "height": 64}

    with Engine(model, budget=TOGETHER, loras=LoraSources(folder=tmp_path)) as engine:
        [ours] = engine.generate("a fox", seed=11, loras=[("one", 0.8)], **params)
        [plain] = engine.generate("a fox", seed=11, **params)

    pipe = FluxPipeline.from_pretrained(folder)
    pipe.load_lora_weights(tmp_path, weight_name="one.safetensors", adapter_name="it")
    pipe.set_adapters(["it"], [0.8])
    asked_of_theirs = {"prompt": "a fox", "width": 64, "height": 64, "seed": 11}
    theirs = draw_theirs(
        pipe, TEXT_LENGTH, num_inference_steps=3, guidance_scale=2.5, **asked_of_theirs
    )
    assert psnr(pixels(ours), theirs) >= 60
    assert psnr(pixels(plain), theirs) < 40, "the LoRA changes nothing"


def test_what_acts_on_the_text_encoders_changes_the_prompts_of_its_request_alone(engine):
    before = engine.stats.prompts_encoded
    engine.submit(asked(3)).result()
    engine.submit(asked(3, ("two", 1.0))).result()
    assert engine.stats.prompts_encoded == before + 1  # `two` has nothing for the encoders

    [worded] = engine.submit(asked(3, ("words", 1.0))).result()
    assert engine.stats.prompts_encoded == before + 2
    [plain] = engine.submit(asked(3)).result()
    assert engine.stats.prompts_encoded == before + 2
    assert not np.array_equal(pixels(worded), pixels(plain))


def test_a_picture_remembers_its_loras_and_is_drawn_again_from_its_file(engine):
    [image] = engine.submit(asked(4, ("one", 0.5), ("two", 0.0), ("words", -1.0))).result()

    recipe = read_recipe(image.data)
    [again] = engine.submit(recipe.to_request("again")).result()

    assert recipe.params.loras == (LoraRef("one", 0.5), LoraRef("two", 0.0), LoraRef("words", -1.0))
    assert len(recipe.receipt.loras) == 2
    assert again.data == image.data
    text = recipe.to_infotext()
    assert "a fox <lora:one:0.5> <lora:two:0> <lora:words:-1>\n" in text
    one, words = recipe.receipt.loras
    assert f'Lora hashes: "one: {one}, words: {words}"' in text


def test_a_file_that_is_another_one_now_is_told_by_its_receipt(schnell, tmp_path):
    layer = {"txt_in": bfl_layers(schnell.transformer.config)["txt_in"]}
    receipts = []
    for seed in (1, 2):
        save_file(random_lora(layer, seed=seed), tmp_path / "one.safetensors")
        os.utime(tmp_path / "one.safetensors", ns=(seed, seed))
        with Engine(schnell, budget=ALONE, loras=LoraSources(folder=tmp_path)) as engine:
            [receipt] = engine.receipts(asked(1, "one"))
            receipts.append(receipt)

    [said] = receipts[0].differences(receipts[1])
    assert said == f"LoRA {receipts[0].loras[0]} then, {receipts[1].loras[0]} now"


def test_a_file_that_is_changed_or_added_is_seen_without_a_restart(schnell, tmp_path):
    layer = {"txt_in": bfl_layers(schnell.transformer.config)["txt_in"]}
    with Engine(schnell, budget=ALONE, loras=LoraSources(folder=tmp_path)) as engine:
        with pytest.raises(UnknownLora, match="folder of LoRAs is empty"):
            engine.submit(asked(1, "one"))
        pictures = []
        for seed in (1, 2):
            save_file(random_lora(layer, seed=seed), tmp_path / "one.safetensors")
            os.utime(tmp_path / "one.safetensors", ns=(seed, seed))
            [image] = engine.submit(asked(1, ("one", 5.0))).result()
            pictures.append(pixels(image))

    assert not np.array_equal(*pictures)


def test_adapters_used_longest_ago_go_when_the_bytes_run_out(schnell, folder):
    [(two, _)] = Library(schnell, LoraSources(folder=folder)).mix([LoraRef("two")])
    library = Library(schnell, LoraSources(folder=folder, cache_bytes=two.bytes))

    def held(name):
        [(adapter, _)] = library.mix([LoraRef(name)])
        return adapter

    first = held("one")
    assert held("one") is first
    held("two")
    assert held("one") is not first


def test_an_engine_that_closes_leaves_the_model_as_it_was(schnell, sources):
    before = [name for name, _ in schnell.transformer.named_modules()]
    with Engine(schnell, budget=ALONE, loras=sources) as engine:
        engine.submit(asked(1, "one")).result()
        assert [name for name, _ in schnell.transformer.named_modules()] != before

    assert [name for name, _ in schnell.transformer.named_modules()] == before


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ([("one", 1.0), ("one", 0.5)], "'one' is named twice"),
        ([("one", float("nan"))], "strength of LoRA 'one' must be from -10 to 10; got nan"),
        ([("one", 11.0)], "got 11"),
        ([(f"{i}", 1.0) for i in range(MOST_LORAS + 1)], "at most 8; got 9"),
        ([("", 1.0)], "needs a name"),
    ],
)
def test_what_no_model_could_do_is_refused(engine, loras, said):
    with pytest.raises(InvalidParams, match=said) as refused:
        engine.submit(asked(1, *loras))
    assert refused.value.field == "loras"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("won", "no LoRA 'won' here; did you mean two, one"),
        ("../one", "no LoRA '../one' here"),
        ("/etc/passwd", "no LoRA '/etc/passwd' here"),
        ("owner/repository", "this server fetches none"),
    ],
)
def test_a_name_that_is_not_there_is_never_made_into_a_path(engine, folder, name, said):
    with pytest.raises(UnknownLora, match=said):
        engine.submit(asked(1, name))


def test_an_engine_of_ones_own_takes_files_and_folders(schnell, folder, tmp_path):
    peft = tmp_path / "tuned"
    peft.mkdir()
    hidden = schnell.transformer.config.hidden
    tensors = random_lora({"transformer_blocks.0.attn.to_q": (hidden, hidden)},
                          prefix="base_model.model.")  # fmt: skip
    save_file(tensors, peft / "adapter_model.safetensors")
    library = Library(schnell, LoraSources())

    [(file, _)] = library.mix([LoraRef(str(folder / "one.safetensors"))])
    [(plain, _)] = library.mix([LoraRef(str(peft))])
    (peft / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4}')
    [(scaled, _)] = Library(schnell, LoraSources()).mix([LoraRef(str(peft))])

    assert file.parts
    [[(_, _, up)]], [[(_, _, twice)]] = plain.parts.values(), scaled.parts.values()
    torch.testing.assert_close(twice, 2 * up)


def test_files_that_are_no_safetensors_are_refused(schnell, tmp_path):
    (tmp_path / "one.pt").write_bytes(b"pickle")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    library = Library(schnell, LoraSources(folder=tmp_path))

    with pytest.raises(InvalidParams, match=r"only .safetensors files are read, not .pt"):
        library.mix([LoraRef(str(tmp_path / "one.pt"))])
    with pytest.raises(InvalidParams, match="LoRA 'torn' cannot be used"):
        library.mix([LoraRef("torn")])


def test_one_that_does_not_fit_the_model_is_refused_before_anything_is_drawn(schnell, tmp_path):
    save_file(random_lora({"txt_in": (4096, 3072)}), tmp_path / "large.safetensors")
    with (
        Engine(schnell, budget=ALONE, loras=LoraSources(folder=tmp_path)) as engine,
        pytest.raises(InvalidParams, match=r"LoRA 'large' cannot be used: .* 4096 to 3072"),
    ):
        engine.submit(asked(1, "large"))


def test_the_embedded_model_draws_its_example():
    with Engine(open_model("mini", "cpu"), budget=TOGETHER) as engine:
        said = {"prompt": "an ink drawing of a fox", "seed": 3, "steps": 4}
        [plain] = engine.generate(**said)
        [half] = engine.generate(**said, loras=[("examples/ink.safetensors", 0.5)])
        [inked] = engine.generate(**said, loras=["examples/ink.safetensors"])

    def colourfulness(image):
        return np.ptp(pixels(image), axis=2).mean()

    assert colourfulness(plain) > 1.3 * colourfulness(half) > 1.3 * colourfulness(inked)


@pytest.mark.proves("lora", "flux1", "{kind}")
@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_beside_quantized_weights_a_lora_does_what_it_does_beside_full_ones(
    schnell_folder, engine, sources, kind
):
    requests = [asked(5), asked(5, LoraRef("one", 0.2))]
    full = [pixels(engine.submit(request).result()[0]) for request in requests]
    model = open_model(str(schnell_folder), "cpu", kind)
    with Engine(model, budget=TOGETHER, loras=sources) as quantized:
        held = [pixels(quantized.submit(request).result()[0]) for request in requests]

    effect, same = (full[1] - full[0]).ravel(), (held[1] - held[0]).ravel()
    assert np.abs(effect).mean() > 3, "the LoRA does nothing"
    assert np.corrcoef(effect, same)[0, 1] > 0.9


def test_a_file_written_anew_changes_nothing_that_is_under_way(schnell, tmp_path):
    sizes = bfl_layers(schnell.transformer.config)
    file = tmp_path / "one.safetensors"
    save_file(random_lora(sizes, prefix="diffusion_model.", by=0.5, seed=1), file)
    [(adapter, _)] = Library(schnell, LoraSources()).mix([LoraRef(str(file))])
    before = {name: [a.clone() for _, a, _ in parts] for name, parts in adapter.parts.items()}

    file.write_bytes(bytes(file.stat().st_size))  # in place, as cp does

    for name, parts in adapter.parts.items():
        assert all(map(torch.equal, before[name], [a for _, a, _ in parts]))


def test_pictures_of_one_request_wear_one_copy_of_an_adapter(engine):
    jobs = engine._intake.jobs_of(planned(*(asked(seed, LoraRef("one")) for seed in range(3))))
    assert len({id(adapter) for job in jobs for adapter, _ in job.mix}) == 1


def test_no_prompt_is_taken_for_another_with_a_lora(schnell, sources, folder):
    [(adapter, _)] = Library(schnell, sources).mix([LoraRef("words")])
    sly = f"a fox\0{adapter.digest} 1.0"
    with Engine(schnell, budget=TOGETHER, loras=sources) as engine:
        alone = pixels(engine.generate(sly, seed=5, steps=2)[0])
        engine.generate("a fox", seed=5, steps=2, loras=(LoraRef("words"),))
        assert np.array_equal(pixels(engine.generate(sly, seed=5, steps=2)[0]), alone)
    with Engine(schnell, budget=TOGETHER, loras=sources) as engine:
        engine.generate("a fox", seed=5, steps=2, loras=(LoraRef("words"),))
        assert np.array_equal(pixels(engine.generate(sly, seed=5, steps=2)[0]), alone)


def test_who_waits_takes_nothing_of_the_device(schnell, sources):
    """Adapters lie on the CPU, whatever the model computes on."""
    distant = SimpleNamespace(**{name: getattr(schnell, name) for name in ADAPTABLE})
    distant.device = torch.device("meta")
    [(adapter, _)] = Library(distant, sources).mix([LoraRef("one")])
    halves = [half for parts in adapter.parts.values() for _, *halves in parts for half in halves]
    assert {half.device.type for half in halves} == {"cpu"}


def test_what_no_picture_wears_any_more_is_let_go(schnell, sources, monkeypatch):
    decode, held = schnell.decode, []

    def seen(*given):
        held.append(engine._runner._bank.bytes)
        return decode(*given)

    monkeypatch.setattr(schnell, "decode", seen)
    with Engine(schnell, budget=ALONE, loras=sources) as engine:
        for loras in (["one"], []):
            engine.submit(asked(1, *loras)).result()
    assert held[0] > 0
    assert held[1] == 0


def test_one_in_memory_is_there_while_another_is_read(schnell, sources, monkeypatch):
    library = Library(schnell, sources)
    library.mix([LoraRef("one")])
    begun, go_on, read = threading.Event(), threading.Event(), schnell.read_adapter
    reads = []

    def slow(*given):
        reads.append(given)
        begun.set()
        assert go_on.wait(10)
        return read(*given)

    monkeypatch.setattr(schnell, "read_adapter", slow)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(library.mix, [LoraRef("two")]) for _ in range(2)]
        assert begun.wait(10)
        known = pool.submit(library.mix, [LoraRef("one")])
        try:
            assert known.result(5)
        finally:
            go_on.set()
        [[(adapter, _)], [(same, _)]] = [one.result(10) for one in waiting]
    assert same is adapter
    assert len(reads) == 1


def test_memory_that_runs_out_is_sought_where_adapters_lie(schnell, sources, monkeypatch):
    """Decoding fails as long as any lie there: a picture that would fit is drawn."""
    with Engine(schnell, budget=ALONE, loras=sources) as engine:
        bank, decode = engine._runner._bank, schnell.decode

        def decode_in_what_is_left(*given):
            if bank.bytes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(*given)

        monkeypatch.setattr(schnell, "decode", decode_in_what_is_left)
        [image] = engine.submit(asked(1, "one")).result()
    assert image.data


# ---- what is said beside the tensors


def peft(folder, schnell, **said):
    """A LoRA as PEFT saves it."""
    hidden = schnell.transformer.config.hidden
    sizes = {"transformer_blocks.0.attn.to_q": (hidden, hidden)}
    folder.mkdir(exist_ok=True)
    file = folder / "adapter_model.safetensors"
    save_file(random_lora(sizes, prefix="base_model.model."), file)
    if said:
        (folder / "adapter_config.json").write_text(json.dumps(said))
    return file


def test_another_alpha_beside_the_same_tensors_is_another_lora(schnell, tmp_path):
    """At once, in an engine that has read it; its prompts and receipts tell them apart."""
    library = Library(schnell, LoraSources(folder=tmp_path))
    digests, ups = [], []
    for alpha in (None, 4, 8):
        peft(tmp_path / "tuned", schnell, **({"lora_alpha": alpha} if alpha else {}))
        [(adapter, _)] = library.mix([LoraRef("tuned")])
        digests.append(adapter.digest)
        [[(_, _, up)]] = adapter.parts.values()
        ups.append(up)

    assert len(set(digests)) == 3
    torch.testing.assert_close(ups[2], 2 * ups[1])


def test_another_alpha_in_the_metadata_is_another_lora(schnell, tmp_path):
    layer = {"txt_in": bfl_layers(schnell.transformer.config)["txt_in"]}
    digests = []
    for alpha in (4, 8):
        about = {"lora_adapter_metadata": json.dumps({"lora_alpha": alpha})}
        save_file(random_lora(layer), tmp_path / f"{alpha}.safetensors", about)
        [(adapter, _)] = Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef(f"{alpha}")])
        digests.append(adapter.digest)
    assert digests[0] != digests[1]


def test_a_configuration_is_of_the_one_file_that_peft_would_read(schnell, tmp_path):
    layer = {"txt_in": bfl_layers(schnell.transformer.config)["txt_in"]}
    library = Library(schnell, LoraSources(folder=tmp_path))
    save_file(random_lora(layer), tmp_path / "ink.safetensors")
    [(before, _)] = library.mix([LoraRef("ink")])
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 400}')
    [(after, _)] = Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef("ink")])
    assert before.digest == after.digest
    assert all(
        torch.equal(a[2], b[2])
        for a, b in zip(*(next(iter(x.parts.values())) for x in (before, after)), strict=True)
    )


# ---- files that are nobody's fault, or somebody's


@pytest.mark.parametrize("name", ["gone", "~nobody-of-that-name/one", "x" * 5000])
def test_a_disk_that_does_not_give_a_file_ends_the_request_and_not_the_engine(
    schnell, folder, tmp_path, name
):
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    with Engine(schnell, budget=ALONE, loras=LoraSources(folder=tmp_path, fetch=False)) as engine:
        with pytest.raises(RequestError) as refused:
            engine.submit(asked(1, name))
        assert "LoRA" in refused.value.message
        assert str(tmp_path) not in refused.value.message
        engine.submit(asked(1)).result()


def test_a_folder_that_cannot_be_read_is_told_as_such(schnell, tmp_path):
    (tmp_path / "loras").write_bytes(b"where the folder was")
    library = Library(schnell, LoraSources(folder=tmp_path / "loras", paths=False))
    with pytest.raises(UnknownLora, match=r"folder of LoRAs cannot be read \(Not a directory\)"):
        library.mix([LoraRef("one")])


def test_a_file_that_is_changed_while_it_is_read_is_not_taken_for_either(
    schnell, folder, tmp_path, monkeypatch
):
    file = tmp_path / "one.safetensors"
    shutil.copy(folder / "one.safetensors", file)
    read = schnell.read_adapter

    def changed(*given):
        os.utime(file, ns=(1, 1))
        return read(*given)

    monkeypatch.setattr(schnell, "read_adapter", changed)
    with pytest.raises(InvalidParams, match="changed while it was read"):
        Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef("one")])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor(float("nan")), "NaN"),
        (torch.tensor(float("inf")), "infinity"),
        (torch.tensor(1e30), "not from -10000 to 10000"),
    ],
)
def test_values_that_could_reach_other_rows_are_refused(schnell, tmp_path, value, said):
    """0 times infinity is NaN: one that overflows would spoil the rows that do not wear it."""
    tensors = random_lora({"txt_in": bfl_layers(schnell.transformer.config)["txt_in"]})
    tensors["txt_in.lora_A.weight"][0, 0] = value
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(InvalidParams, match=said):
        Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef("one")])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_floats_of_any_width_are_read_as_what_they_say(schnell, tmp_path, dtype):
    layer = {"txt_in": bfl_layers(schnell.transformer.config)["txt_in"]}
    tensors = {name: tensor.to(dtype) for name, tensor in random_lora(layer).items()}
    save_file(tensors, tmp_path / "one.safetensors")
    [(adapter, _)] = Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef("one")])
    [[(_, down, up)]] = adapter.parts.values()
    assert torch.equal(down, tensors["txt_in.lora_A.weight"].to(down.dtype))
    assert torch.equal(up, tensors["txt_in.lora_B.weight"].to(up.dtype))


def test_what_is_no_float_is_refused(schnell, tmp_path):
    layer = {"txt_in": bfl_layers(schnell.transformer.config)["txt_in"]}
    tensors = {name: tensor.to(torch.int8) for name, tensor in random_lora(layer).items()}
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(InvalidParams, match="holds int8, which is not read"):
        Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef("one")])


@pytest.mark.parametrize("held", [b"", b"\0" * 8, b"\2\0\0\0\0\0\0\0{}"])
def test_a_file_of_nothing_is_refused(schnell, tmp_path, held):
    (tmp_path / "one.safetensors").write_bytes(held)
    with pytest.raises(InvalidParams, match="LoRA 'one' cannot be used"):
        Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef("one")])


def test_a_file_that_is_too_large_is_refused_before_it_is_read(schnell, tmp_path):
    with (tmp_path / "whole.safetensors").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(InvalidParams, match=r"whole.safetensors is of 4 GiB; at most 4 are read"):
        Library(schnell, LoraSources(folder=tmp_path)).mix([LoraRef("whole")])
