"""LoRA files of every dialect against diffusers, which reads them by its own functions."""

import json

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils as theirs
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

from fluxline.errors import LoadError
from fluxline.linear.lora import Adapter, AdapterBank
from fluxline.models.flux.adapters import AdapterReader
from fluxline.models.flux1.names import linears
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from tests.lora_files import (
    bfl_layers,
    linear_layers,
    random_lokr,
    random_lora,
    xlabs_layers,
)
from tests.models.flux1.oracle import Inputs, evaluate_ours, evaluate_theirs
from tests.models.nearness import relative_l2

TOLERANCE = 1e-5  # float32, different order of summation in fused products
KOHYA = (".lora_down.weight", ".lora_up.weight")
FINAL = ("final_layer.linear", "final_layer.adaLN_modulation.1")
"""Whose alphas diffusers passes over."""


def without(sizes, *parts):
    return {name: size for name, size in sizes.items() if not any(part in name for part in parts)}


def peft_about(alpha, **more):
    said = {"transformer.r": 4, "transformer.lora_alpha": alpha, "transformer.target_modules": []}
    return {"lora_adapter_metadata": json.dumps(said | more)}


DIALECTS = {
    "diffusers": lambda d, b, x: random_lora(d, prefix="transformer."),
    "diffusers with alphas": lambda d, b, x: random_lora(d, prefix="transformer.", alpha=2.0),
    "kohya": lambda d, b, x: random_lora(
        # diffusers splits linear1 at 3072 alone: below, at that width
        without(b, "linear1"), prefix="lora_unet_", ends=KOHYA, is_flat=True, alpha=2.0,
        without_alpha=FINAL,
    ),
    "kohya without alphas": lambda d, b, x: random_lora(
        without(b, "linear1"), prefix="lora_unet_", ends=KOHYA, is_flat=True
    ),
    "comfyui": lambda d, b, x: random_lora(
        without(b, "linear1"), prefix="diffusion_model.", ends=KOHYA, alpha=8.0,
        without_alpha=FINAL,
    ),
    "onetrainer": lambda d, b, x: random_lora(
        without(d, "ff", "norm", "proj_mlp", "proj_out"),  # what diffusers reads of it
        prefix="lora_transformer_", ends=KOHYA, is_flat=True, alpha=1.0,
    ),
    "x-labs": lambda d, b, x: random_lora(x, ends=(".down.weight", ".up.weight")),
}  # fmt: skip


@pytest.fixture(params=["schnell", "dev"])
def pair(request):
    """Our model, and a pipeline of theirs that may be changed."""
    folder = request.getfixturevalue(f"{request.param}_folder")
    return request.getfixturevalue(request.param), FluxPipeline.from_pretrained(folder)


def changed(model, tensors, about, strength, inputs):
    """What our transformer answers with a LoRA; and that it is not what it answers without."""
    parts = model.read_adapter(tensors, about)
    bank = AdapterBank(model.adaptable)
    plain = evaluate_ours(model.transformer, inputs)
    with bank.rows([((Adapter(digest="it", parts=parts), strength),)]):
        worn = evaluate_ours(model.transformer, inputs)
    bank.detach()
    assert relative_l2(worn, plain) > 0.01, "the LoRA changes nothing"
    return worn


def as_diffusers(tensors):
    """Converted by diffusers, whose loader would pass over what its converter gives no prefix:
    the embedders and the last layer."""
    state, alphas = FluxLoraLoaderMixin.lora_state_dict(dict(tensors), return_alphas=True)
    named = {k if k.startswith("transformer.") else f"transformer.{k}": v for k, v in state.items()}
    return {**named, **(alphas or {})}


@pytest.mark.proves("lora", "flux1")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_lora_equals_diffusers(pair, dialect):
    model, pipe = pair
    config = model.transformer.config
    tensors = DIALECTS[dialect](
        linear_layers(pipe.transformer), bfl_layers(config), xlabs_layers(config)
    )
    inputs = Inputs.random(config, [(8, 8)])

    ours = changed(model, tensors, {}, 0.7, inputs)

    pipe.load_lora_weights(as_diffusers(tensors), adapter_name="it")
    pipe.set_adapters(["it"], [0.7])
    assert relative_l2(ours, evaluate_theirs(pipe.transformer, inputs)) <= TOLERANCE


@pytest.mark.proves("lokr", "flux1")
@pytest.mark.parametrize("factor", [4, -1])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_lokr_equals_pefts(pair, factor, alpha):
    """diffusers has no converter of FLUX.1's; PEFT reads what bears its own names."""
    model, pipe = pair
    sizes = linear_layers(pipe.transformer)
    tensors = random_lokr(sizes, prefix="transformer.", factor=factor)
    about = {"r": 8, "alpha": alpha, "peft_type": "LOKR"} if alpha else {}
    said = {f"transformer.{key}": value for key, value in about.items()}
    inputs = Inputs.random(model.transformer.config, [(8, 8)])

    metadata = {"lora_adapter_metadata": json.dumps(said)}
    ours = changed(model, tensors, metadata, 0.7, inputs)

    pipe.transformer.load_lora_adapter(dict(tensors), adapter_name="it")
    pipe.set_adapters(["it"], [0.7 * (alpha or 8.0) / 8.0])
    assert relative_l2(ours, evaluate_theirs(pipe.transformer, inputs)) <= TOLERANCE


LOKR = {
    "ai-toolkit": {"prefix": "diffusion_model.", "alpha": 4.0},
    "kohya": {"prefix": "lora_unet_", "is_flat": True, "decomposes_both": True, "rank": 2},
}


@pytest.mark.parametrize("dialect", LOKR)
def test_a_lokr_by_bfls_names_is_what_its_whole_matrices_would_be(dev, dialect):
    """Every layer, the last modulation's halves in our order too."""
    sizes, more = bfl_layers(dev.transformer.config), LOKR[dialect]
    tensors = random_lokr(sizes, factor=16, **more)
    inputs = Inputs.random(dev.transformer.config, [(8, 8)])
    whole = {}
    for name, (width, _) in sizes.items():
        spelled = more["prefix"] + (name.replace(".", "_") if more.get("is_flat") else name)
        left, right = (of_factors(tensors, f"{spelled}.lokr_w{n}") for n in (1, 2))
        rank = len(tensors.get(f"{spelled}.lokr_w2_b", ()))
        scale = more.get("alpha", rank) / rank if rank else 1.0
        whole[f"diffusion_model.{name}.lora_A.weight"] = torch.eye(width)
        whole[f"diffusion_model.{name}.lora_B.weight"] = scale * torch.kron(left, right)

    ours = changed(dev, tensors, {}, 0.7, inputs)

    assert relative_l2(ours, changed(dev, whole, {}, 0.7, inputs)) <= TOLERANCE


def of_factors(tensors, name):
    return tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"transformer.use_rslora": True},
        {
            "transformer.alpha_pattern": {"attn.to_q": 1.0, "^proj_out": 8.0},
            "transformer.rank_pattern": {},
        },
    ],
    ids=["alpha", "rslora", "patterns"],
)
def test_the_scale_that_peft_was_trained_with_is_read(schnell, schnell_folder, tmp_path, more):
    from safetensors.torch import save_file

    pipe = FluxPipeline.from_pretrained(schnell_folder)
    tensors = random_lora(linear_layers(pipe.transformer), prefix="transformer.")
    names = sorted(linear_layers(pipe.transformer))
    about = peft_about(16, **more, **{"transformer.target_modules": names})
    save_file(tensors, tmp_path / "one.safetensors", about)
    inputs = Inputs.random(schnell.transformer.config, [(8, 8)])

    ours = changed(schnell, tensors, about, 1.0, inputs)

    pipe.load_lora_weights(tmp_path, weight_name="one.safetensors")
    assert relative_l2(ours, evaluate_theirs(pipe.transformer, inputs)) <= TOLERANCE


# ---- at the width of the real FLUX.1, to which diffusers' converters are bound; no weights needed

TRUE = FluxConfig(
    in_channels=64, out_channels=64, depth_double=19, depth_single=38, head_dim=128, heads=24,
    text_dim=4096, pooled_dim=768, guidance=True, axes=(16, 56, 56),
)  # fmt: skip


@pytest.fixture(scope="module")
def true_reader():
    with torch.device("meta"):
        return AdapterReader(linears(TRUE), {"transformer": FluxTransformer(TRUE)})


def some_blocks(sizes):
    """The first and the last block of either kind, and all that is no block."""
    wanted = ("_blocks.0.", "double_blocks.18.", "single_blocks.37.")
    return {n: s for n, s in sizes.items() if "_blocks" not in n or any(w in n for w in wanted)}


@pytest.mark.parametrize("spelling", ["kohya", "comfyui", "fal"])
def test_a_file_means_what_diffusers_converter_says_at_the_true_width(true_reader, spelling):
    sizes = bfl_layers(TRUE)
    if spelling == "fal":
        trained = {n: s for n, s in sizes.items() if "_blocks" in n or n == "final_layer.linear"}
        tensors = random_lora(trained, prefix="base_model.model.", rank=1)
        converted = theirs._convert_fal_kontext_lora_to_diffusers(dict(tensors))
    else:
        tensors = random_lora(
            some_blocks(sizes), rank=2, ends=KOHYA, alpha=1.0, without_alpha=FINAL,
            prefix={"kohya": "lora_unet_", "comfyui": "diffusion_model."}[spelling],
            is_flat=spelling == "kohya",
        )  # fmt: skip
        converted = FluxLoraLoaderMixin.lora_state_dict(dict(tensors))

    ours, as_converted = (true_reader.read(t, {}) for t in (tensors, converted))

    assert ours.keys() == as_converted.keys()
    for layer in as_converted:
        answers = [
            _answer(parts[layer], true_reader._widths[layer]) for parts in (ours, as_converted)
        ]
        torch.testing.assert_close(*answers)


def _answer(parts, size):
    width, height = size
    x = torch.randn(width, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(height)
    for row, down, up in parts:
        y[row : row + len(up)] += up @ (down @ x)
    return y


# ---- what is refused, and how


@pytest.fixture
def small(schnell):
    """A file of one layer that would be read, to be spoilt."""
    hidden = schnell.transformer.config.hidden
    sizes = {"transformer_blocks.0.attn.to_q": (hidden, hidden)}
    return random_lora(sizes, prefix="transformer.")


TO_Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"{TO_Q}.dora_scale", torch.ones(4), "DoRA"),
        (f"{TO_Q}.lora_magnitude_vector", torch.ones(4), "DoRA"),
        (f"{TO_Q}.hada_w1_a", torch.ones(4, 4), "LoHa"),
        (f"{TO_Q}.lokr_w1", torch.ones(4, 4), "not all of one LoKr"),
        (f"{TO_Q}.lokr_t2", torch.ones(4, 4), "convolution"),
        (f"{TO_Q}.diff_b", torch.ones(4), "difference"),
        (f"{TO_Q}.lora_B.bias", torch.ones(4), "bias"),
        ("transformer.nobody.knows.lora_A.weight", torch.ones(4, 4), "nobody.knows"),
        (f"{TO_Q}.lora_A.weight", torch.full((4, 128), torch.nan), "NaN"),
        (f"{TO_Q}.lora_B.weight", torch.full((128, 4), torch.inf), "infinity"),
        (f"{TO_Q}.lora_A.weight", torch.ones(4, 3072), "3072 to 128 .* 128 to 128"),
        (f"{TO_Q}.lora_B.weight", torch.ones(384, 4), "128 to 384"),
        (f"{TO_Q}.lora_B.weight", torch.ones(128, 2), "ranks 4 and 2"),
        ("transformer.x_embedder.lora_A.weight", torch.ones(4, 128), "half"),
        (f"{TO_Q}.lora_A.weight", torch.tensor(1.0), r"two matrices .* \(\) and"),
        (f"{TO_Q}.lora_A.weight", torch.ones(4, 128, 1, 1), "two matrices"),
        (f"{TO_Q}.lora_A.weight", torch.ones(0, 128), "two matrices"),
        (f"{TO_Q.replace('.', '_')}.lora_A.weight", torch.ones(4, 128), "twice"),
    ],
)
def test_what_cannot_be_read_is_named(schnell, small, key, value, said):
    with pytest.raises(LoadError, match=said):
        schnell.read_adapter({**small, key: value}, {})


def lokr(**factors):
    return {f"{TO_Q}.lokr_{name}": factor for name, factor in factors.items()}


LEFT, RIGHT = torch.ones(4, 4), torch.ones(32, 32)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"w1": LEFT}, "not all of one LoKr"),
        ({"w1": LEFT, "w2_a": torch.ones(32, 2)}, "not all of one LoKr"),
        ({"w1": LEFT, "w2": RIGHT, "w2_a": torch.ones(32, 2)}, "not all of one LoKr"),
        ({"w1": LEFT, "w2": torch.ones(32, 31)}, "124 to 128 .* 128 to 128"),
        ({"w1": torch.ones(8, 4), "w2": RIGHT}, "128 to 256"),
        ({"w1": LEFT, "w2_a": torch.ones(32, 2), "w2_b": torch.ones(3, 32)}, "of matrices"),
        ({"w1": LEFT, "w2": torch.ones(32, 32, 1, 1)}, "of matrices"),
        ({"w1": torch.ones(0, 4), "w2": RIGHT}, "of matrices"),
        ({"w1": LEFT, "w2": torch.full((32, 32), torch.nan)}, "NaN"),
        (
            {"w1": LEFT, "w2_a": torch.ones(32, 33), "w2_b": torch.ones(33, 32)},
            "rank 33 .* a factor of 32 to 32",
        ),
    ],
)
def test_a_lokr_that_cannot_be_read_is_named(schnell, factors, said):
    with pytest.raises(LoadError, match=said):
        schnell.read_adapter(lokr(**factors), {})


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"alpha": "loud", "r": 8}, "alpha .* must be a number"),
        ({"alpha": 1e10, "r": 8}, "alpha .* must be a number"),
        ({"alpha": True, "r": 8}, "alpha .* must be a number"),
        ({"alpha": 8, "r": True}, "must be a rank; got True"),
        ({"alpha": 8, "r": 0}, "r .* must be a rank; got 0"),
        ({"alpha": 8}, "must be a rank; got None"),
        ({"alpha": 8, "r": 8, "rank_pattern": {"to_q": 4}}, "rank_pattern .* not read for LoKr"),
    ],
)
def test_a_scale_of_a_lokr_that_makes_no_sense_is_named(schnell, about, said):
    metadata = {"lora_adapter_metadata": json.dumps(about)}
    with pytest.raises(LoadError, match=said):
        schnell.read_adapter(lokr(w1=LEFT, w2=RIGHT), metadata)


def test_a_control_lora_is_refused_as_one(schnell):
    hidden = schnell.transformer.config.hidden
    tensors = random_lora({"x_embedder": (128, hidden)}, prefix="transformer.")
    with pytest.raises(LoadError, match="control LoRA"):
        schnell.read_adapter(tensors, {})


def test_dora_that_only_the_metadata_tells_is_refused(schnell, small):
    with pytest.raises(LoadError, match="DoRA"):
        schnell.read_adapter(small, peft_about(4, **{"transformer.use_dora": True}))


def test_a_rank_above_that_of_the_layer_itself_is_refused(schnell):
    hidden = schnell.transformer.config.hidden
    sizes = {"transformer_blocks.0.attn.to_q": (hidden, hidden)}
    schnell.read_adapter(random_lora(sizes, prefix="transformer.", rank=hidden), {})
    with pytest.raises(LoadError, match=f"of rank {hidden + 1} .* a layer of {hidden}"):
        schnell.read_adapter(random_lora(sizes, prefix="transformer.", rank=hidden + 1), {})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "no object"),
        ("[" * 100_000, "cannot be read"),
        ('{"lora_alpha": "much"}', "must be a number; got 'much'"),
        ('{"transformer.lora_alpha": NaN}', "must be a number"),
        ('{"lora_alpha": 1e999}', "must be a number"),
        ('{"alpha_pattern": [1]}', "must be an object"),
        ('{"alpha_pattern": {"to_q": null}}', "must be a number"),
        ('{"alpha_pattern": {"(a+)+$": 1}}', "an expression that is not read"),
        ('{"alpha_pattern": {".*.*.*to_q": 1}}', "an expression that is not read"),
        ('{"alpha_pattern": {"*": 1}}', "an expression that is not read"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_named(schnell, small, said, words):
    with pytest.raises(LoadError, match=words):
        schnell.read_adapter(small, {"lora_adapter_metadata": said})


def test_zeros_for_what_is_not_there_are_passed_over(schnell, small):
    """Trainers write them for layers that they did not train."""
    more = {"lora_unet_guidance_in_in_layer.lora_up.weight": torch.zeros(128, 4)}
    assert schnell.read_adapter({**small, **more}, {}).keys() == {
        "transformer.double_blocks.0.image.to_qkv"
    }


def test_parts_that_share_what_they_read_through_are_one(schnell):
    hidden = schnell.transformer.config.hidden
    block = "single_transformer_blocks.0"
    sizes = {f"{block}.attn.to_{n}": (hidden, hidden) for n in "qkv"}
    tensors = random_lora({**sizes, f"{block}.proj_mlp": (hidden, 4 * hidden)})
    shared = {k: tensors[f"{block}.attn.to_q.lora_A.weight"] if "lora_A" in k else v
              for k, v in tensors.items()}  # fmt: skip

    (apart,) = schnell.read_adapter(tensors, {}).values()
    (together,) = schnell.read_adapter(shared, {}).values()

    assert [len(down) for _, down, _ in apart] == [4, 4, 4, 4]
    assert [(row, len(down), len(up)) for row, down, up in together] == [(0, 4, 7 * hidden)]
