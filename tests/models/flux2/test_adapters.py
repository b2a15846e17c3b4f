"""LoRA files for FLUX.2 in every dialect against diffusers, and in the engine each for its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2Transformer2DModel
from diffusers.loaders.lora_pipeline import Flux2LoraLoaderMixin
from PIL import Image
from safetensors.torch import load_file, save_file

from fluxline.engine import Engine
from fluxline.engine.build import open_model
from fluxline.engine.loras import LoraSources
from fluxline.engine.quantize import quantize
from fluxline.engine.scheduler import Budget
from fluxline.errors import InvalidParams, LoadError
from fluxline.linear.lora import Adapter, AdapterBank
from fluxline.request import Planned
from tests.images.pictures import photo
from tests.lora_files import bfl_layers as flux1_layers
from tests.lora_files import linear_layers, random_lokr, random_lora
from tests.models.flux1.oracle import small_config as flux1_config
from tests.models.flux1.test_pipeline import draw_theirs, pipeline
from tests.models.flux2.bfl_export import bfl_names, save_as_bfl
from tests.models.flux2.oracle import Inputs, evaluate_ours, evaluate_theirs
from tests.models.flux2.test_engine import OTHER, REFERENCE, pixels, pixels_of, request_of
from tests.models.nearness import psnr, relative_l2
from tests.random_flux2 import TEXT_LENGTH

TOLERANCE = 1e-5  # float32, different order of summation in fused products
KOHYA = (".lora_down.weight", ".lora_up.weight")
SHIFT_FIRST = "final_layer.adaLN_modulation.1"  # whose halves diffusers' converter leaves as is
TOGETHER = Budget(batch_tokens=2000, resident_tokens=20_000)
ALONE = Budget(batch_tokens=1, resident_tokens=1)


def blocks(sizes, prefix=""):
    return {f"{prefix}{name}": size for name, size in sizes.items() if "_blocks." in name}


DIALECTS = {
    "diffusers": lambda d, b: random_lora(d, prefix="transformer."),
    "ai-toolkit": lambda d, b: random_lora(b, prefix="diffusion_model."),
    "comfyui": lambda d, b: random_lora(blocks(d), prefix="diffusion_model."),
    "comfyui, cut": lambda d, b: {
        name.replace(".transformer_", ".sformer_"): tensor
        for name, tensor in random_lora(blocks(d), prefix="diffusion_model.").items()
    },
    "peft": lambda d, b: random_lora(b, prefix="base_model.model."),
    "kohya": lambda d, b: random_lora(
        # diffusers reads no more of it
        {name: size for name, size in b.items() if not any(m in name for m in ("_mod", "guid"))},
        prefix="lora_unet_", ends=KOHYA, is_flat=True, alpha=2.0,
    ),
}  # fmt: skip


def bfl_layers(folder):
    """Every linear layer by BFL's name."""
    theirs = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    named = {name.removesuffix(".weight"): tensor for name, tensor in bfl_names(theirs).items()}
    return {n: t.shape[::-1] for n, t in named.items() if t.dim() == 2}


def changed(model, tensors, strength, inputs, about=None):
    """What our transformer answers with a LoRA; and that it is not what it answers without."""
    parts = model.read_adapter(tensors, about or {})
    bank = AdapterBank(model.adaptable)
    plain = evaluate_ours(model.transformer, inputs)
    with bank.rows([((Adapter(digest="it", parts=parts), strength),)]):
        worn = evaluate_ours(model.transformer, inputs)
    bank.detach()
    assert relative_l2(worn, plain) > 0.01, "the LoRA changes nothing"
    return worn


def wear(transformer, source, strength=1.0, **options):
    """Load a LoRA as diffusers' pipelines do."""
    state, about = Flux2LoraLoaderMixin.lora_state_dict(
        source, return_lora_metadata=True, **options
    )
    Flux2LoraLoaderMixin.load_lora_into_transformer(
        state, transformer, adapter_name="it", metadata=about
    )
    transformer.set_adapters(["it"], [strength])


@pytest.mark.proves("lora", "flux2")
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["klein", "dev"])
def test_a_lora_equals_diffusers(models, folders, name, dialect):
    model = models[name]
    theirs = Flux2Transformer2DModel.from_pretrained(folders[name], subfolder="transformer")
    trained = {n: s for n, s in bfl_layers(folders[name]).items() if n != SHIFT_FIRST}
    tensors = DIALECTS[dialect](linear_layers(theirs), trained)
    inputs = Inputs.random(model.transformer.config, [(4, 4)], references=((3, 5),))

    ours = changed(model, tensors, 0.7, inputs)

    wear(theirs, dict(tensors), 0.7)
    assert relative_l2(ours, evaluate_theirs(theirs, inputs)) <= TOLERANCE


LOKR = {
    "ai-toolkit": lambda d, b, more: random_lokr(b, prefix="diffusion_model.", **more),
    "lycoris": lambda d, b, more: random_lokr(
        blocks(d), prefix="lycoris_", is_flat=True, **more
    ),
    "simpletuner": lambda d, b, more: random_lokr(d, **more),
}  # fmt: skip
FACTORS = {
    "low rank": {"alpha": 4.0},
    "both of low rank": {"alpha": 4.0, "rank": 2, "factor": 16, "decomposes_both": True},
    "whole": {"rank": 999, "alpha": 999.0},
    "nearly square": {"factor": -1},
}


@pytest.mark.proves("lokr", "flux2")
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("dialect", LOKR)
def test_a_lokr_equals_diffusers(models, folders, dialect, factors):
    """Q, K and V of ai-toolkit's are one product, for which diffusers makes them one layer."""
    model = models["dev"]
    theirs = Flux2Transformer2DModel.from_pretrained(folders["dev"], subfolder="transformer")
    trained = {n: s for n, s in bfl_layers(folders["dev"]).items() if n != SHIFT_FIRST}
    tensors = LOKR[dialect](linear_layers(theirs), trained, FACTORS[factors])
    inputs = Inputs.random(model.transformer.config, [(4, 4)], references=((3, 5),))

    ours = changed(model, tensors, 0.7, inputs)

    wear(theirs, dict(tensors), 0.7)
    assert relative_l2(ours, evaluate_theirs(theirs, inputs)) <= TOLERANCE


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}], ids=["alpha", "rslora"])
def test_the_scale_that_peft_was_trained_with_is_read(models, folders, tmp_path, more):
    theirs = Flux2Transformer2DModel.from_pretrained(folders["klein"], subfolder="transformer")
    layers = linear_layers(theirs)
    said = {"r": 4, "lora_alpha": 16, "target_modules": sorted(layers), **more}
    about = {f"transformer.{key}": value for key, value in said.items()}
    tensors = random_lora(layers, prefix="transformer.")
    metadata = {"lora_adapter_metadata": json.dumps(about)}
    save_file(tensors, tmp_path / "one.safetensors", metadata)
    inputs = Inputs.random(models["klein"].transformer.config, [(4, 4)])

    ours = changed(models["klein"], tensors, 1.0, inputs, metadata)

    wear(theirs, tmp_path, weight_name="one.safetensors")
    assert relative_l2(ours, evaluate_theirs(theirs, inputs)) <= TOLERANCE


def test_a_bfl_name_means_for_a_lora_what_it_means_in_a_checkpoint(models, folders, tmp_path):
    """Every layer, the last one's halves too: beside the weights as if within them."""
    model, sizes = models["dev"], bfl_layers(folders["dev"])
    tensors = random_lora(sizes, prefix="diffusion_model.")
    inputs = Inputs.random(model.transformer.config, [(4, 4)])
    folder = save_as_bfl(folders["dev"], tmp_path / "merged")
    weights = load_file(folder / "flux2-test.safetensors")
    for name in sizes:
        down, up = (tensors[f"diffusion_model.{name}.lora_{half}.weight"] for half in "AB")
        weights[f"{name}.weight"] += up @ down
    save_file(weights, folder / "flux2-test.safetensors")

    ours = changed(model, tensors, 1.0, inputs)

    merged = evaluate_ours(open_model(str(folder), "cpu").transformer, inputs)
    assert relative_l2(ours, merged) <= TOLERANCE


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", "DoRA"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.hada_w1_a", "LoHa"),
        ("text_encoder.layers.0.self_attn.q_proj.lora_A.weight", "text_encoder"),
        ("transformer.transformer_blocks.9.attn.to_q.lora_A.weight", "blocks.9"),
    ],
)
def test_what_cannot_be_read_is_named(models, key, said):
    with pytest.raises(LoadError, match=said):
        models["klein"].read_adapter({key: torch.ones(4, 4)}, {})


def test_one_of_flux1_is_refused(models):
    tensors = random_lora(blocks(flux1_layers(flux1_config(double=1, single=1, head_dim=64))))
    with pytest.raises(LoadError, match=r"not read: double_blocks\.0\.img_mod|made for a layer of"):
        models["klein"].read_adapter(tensors, {})


# ---- in the engine


@pytest.fixture(scope="module")
def sources(folders, tmp_path_factory):
    """Two LoRAs, in two dialects, and a LoKr."""
    folder = tmp_path_factory.mktemp("loras")
    sizes = bfl_layers(folders["klein"])
    one = random_lora(sizes, prefix="diffusion_model.", by=0.3, seed=1)
    two = random_lora(
        blocks(sizes), prefix="lora_unet_", ends=KOHYA, is_flat=True, rank=7, by=0.3, seed=2
    )
    save_file(one, folder / "one.safetensors")
    save_file(two, folder / "two.safetensors")
    product = random_lokr(sizes, prefix="diffusion_model.", rank=999, by=0.3, seed=3)
    save_file(product, folder / "product.safetensors")
    return LoraSources(folder=folder, paths=False, fetch=False)


def planned(*requests):
    """One request for the pictures of many, so that all of them come at once."""
    plan = tuple(Planned(seed=r.seed, params=r.params) for r in requests)
    return replace(requests[0], plan=plan)


MIXTURES = [
    (),
    (("one", 1.0),),
    (("two", 0.8),),
    (("one", 0.5), ("two", -0.5)),
    (("product", 1.0),),
    (("product", -0.4), ("one", 0.6)),
]
ASKED = {"prompt": "a fox", "width": 64, "height": 64, "steps": 2}


@pytest.mark.proves("mixed lora", "flux2")
@pytest.mark.parametrize(
    ("name", "references"), [("klein", ()), ("klein", (OTHER,)), ("kv", (REFERENCE,))]
)
def test_a_batch_of_any_mixture_equals_each_alone(models, sources, name, references):
    """Of a model that remembers references too: what it remembers, it saw with its LoRAs."""
    requests = [request_of({**ASKED, "loras": m, "references": references}) for m in MIXTURES]
    with Engine(models[name], budget=TOGETHER, loras=sources) as engine:
        together = engine.submit(planned(*requests)).result()
        stats = engine.stats
    with Engine(models[name], budget=ALONE, loras=sources) as engine:
        alone = [pixels(engine.submit(request)) for request in requests]

    assert stats.forwards < stats.rows, "nothing shared a forward"
    for image, solo in zip(together, alone, strict=True):
        gap = np.abs(pixels_of(image) - solo)
        assert gap.max() <= 1
        assert np.mean(gap == 0) >= 0.998
    for number, picture in enumerate(alone):
        assert all(np.abs(picture - other).max() > 3 for other in alone[:number])


@pytest.mark.proves("lora", "flux2", "{kind}")
@pytest.mark.parametrize("name", ["one", "product"])
@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_beside_quantized_weights_it_is_as_beside_what_they_stand_for(
    folders, sources, tmp_path, kind, name
):
    quantize(str(folders["klein"]), kind, tmp_path / "out", device="cpu")
    held, full = (open_model(str(tmp_path / "out"), "cpu", kind) for kind in ("auto", "fp32"))
    tensors = load_file(sources.folder / f"{name}.safetensors")
    inputs = Inputs.random(held.transformer.config, [(4, 4)])

    one, other = (changed(model, tensors, 0.8, inputs) for model in (held, full))

    assert held.spec.precision == kind
    assert relative_l2(one, other) < 1e-4


def test_a_picture_after_a_picture_that_is_remembered_equals_diffusers(models, folders, sources):
    """What is remembered of a reference is made with the LoRA, as diffusers makes it."""
    request = request_of({**ASKED, "loras": (("two", 0.8),), "references": (REFERENCE,)})
    with Engine(models["kv"], budget=TOGETHER, loras=sources) as engine:
        ours = pixels(engine.submit(request))

    pipe = pipeline(folders["kv"], Flux2KleinKVPipeline)
    pipe.load_lora_weights(sources.folder, weight_name="two.safetensors", adapter_name="it")
    pipe.set_adapters(["it"], [0.8])
    theirs = draw_theirs(
        pipe,
        TEXT_LENGTH,
        image=[Image.fromarray(photo(96)[:64])],
        num_inference_steps=2,
        prompt="a fox",
        width=64,
        height=64,
        seed=5,
    )
    assert psnr(ours, theirs) >= 60


def test_one_that_does_not_fit_is_refused_before_anything_is_drawn(models, tmp_path):
    save_file(random_lora({"txt_in": (7680, 3072)}), tmp_path / "large.safetensors")
    with (
        Engine(models["klein"], budget=ALONE, loras=LoraSources(folder=tmp_path)) as engine,
        pytest.raises(InvalidParams, match=r"LoRA 'large' cannot be used: .* 7680 to 3072"),
    ):
        engine.submit(request_of({**ASKED, "loras": ("large",)}))
