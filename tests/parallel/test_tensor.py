"""A network whose weights many ranks hold together gives what one gives that has them all."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from fluxline.ability import kept_bytes
from fluxline.approximation import approximation_of
from fluxline.degrees import degrees_of
from fluxline.engine.build import checkpoint_at, open_model
from fluxline.engine.loras import Library, LoraSources
from fluxline.engine.ranks import divide
from fluxline.engine.replay import Follower
from fluxline.engine.tune import Probe
from fluxline.linear.lora import AdapterBank
from fluxline.parallel.crew import Crew
from fluxline.parallel.mesh import Mesh
from fluxline.request import LoraRef
from tests.lora_files import bfl_layers, random_lokr, random_lora
from tests.models.flux1.oracle import small_config as small_flux1
from tests.models.flux2.oracle import small_config as small_flux2
from tests.models.nearness import relative_l2
from tests.random_flux import save_random_flux
from tests.random_flux2 import THOUGHTS, save_random_klein

pytestmark = pytest.mark.timeout(300)  # four processes open models

HEADS, HEAD_DIM, DOUBLE, SINGLE = 5, 32, 1, 2  # five are divided by no number of ranks here
NUMBERS = {"head_dim": HEAD_DIM, "heads": HEADS, "double": DOUBLE, "single": SINGLE}
FLUX1 = small_flux1(guidance=True, **NUMBERS)
FLUX2 = small_flux2(text_dim=3 * THOUGHTS, **NUMBERS)
SIZE = (64, 48)
SIGMAS = (0.9, 0.4)
AXES = ["tensor=2", "tensor=3", "tensor=4", "tensor=2,ulysses=2", "tensor=2,ring=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small random model of each family."""
    root = tmp_path_factory.mktemp("shared")
    return {
        "flux1": save_random_flux(root / "flux1", FLUX1, dynamic_shift=True),
        "flux2": save_random_klein(root / "flux2", FLUX2, is_distilled=True),
    }


@pytest.fixture(scope="module")
def loras(folders, tmp_path_factory):
    """One of each family, beside every linear layer of its transformer; FLUX.1's has Q, K and V as
    one, and its last modulation in another order than ours."""
    root = tmp_path_factory.mktemp("loras")
    layers = {
        "flux1": bfl_layers(FLUX1),
        "flux2": {
            name.removesuffix(".weight"): shape[::-1]
            for name, shape in checkpoint_at(folders["flux2"] / "transformer").shapes.items()
            if len(shape) == 2
        },
    }
    files = {family: root / f"{family}.safetensors" for family in layers}
    for family, file in list(files.items()):
        save_file(random_lora(layers[family], prefix="transformer.", by=0.5), file)
        lokr = random_lokr(layers[family], prefix="transformer.", by=0.5)
        save_file(lokr, files.setdefault(f"{family} lokr", root / f"{family}-lokr.safetensors"))
    return files


def drawn(folder, parallel="", precision="fp32", lora=None):
    """One evaluation: its velocity, and what this rank holds and has sent for it."""
    mesh = Mesh.join(degrees_of(parallel))
    crew = Crew(mesh)
    model = open_model(str(folder), "cpu", precision, crew=crew)
    mix = ()
    if lora is not None:
        mix = Library(model, LoraSources()).mix([LoraRef(str(lora), 0.8)])
    width, height = SIZE
    with AdapterBank(model.adaptable).rows([mix]):
        (conditioning,) = model.encode(["a boat, 2 birds"])
        context = model.context(
            conditioning,
            width=width,
            height=height,
            guidance=model.spec.guidance,
            sigmas=SIGMAS,
        )
        asked = crew.traffic.bytes
        x = model.noise(torch.Generator().manual_seed(3), width, height).to(model.dtype)
        run = crew.divided(model.transformer) if crew.parts > 1 else model.transformer
        velocity = run(x[None], context.text[None], context.modulation[1:], context.rope[None])
    held = [*model.transformer.parameters(), *model.transformer.buffers()]
    return SimpleNamespace(
        velocity=velocity.float(),
        tokens=len(x) + len(context.text),
        held_bytes=sum(tensor.nbytes for tensor in held),
        context_bytes=asked,
        evaluation_bytes=crew.traffic.bytes - asked,
    )


def alone(*given):
    with torch.inference_mode():
        return drawn(*given)


def near(ours, whole, tolerance):
    return (ours - whole).abs().max() <= tolerance * whole.abs().max()


@pytest.mark.parametrize("parallel", AXES)
@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_shared_weights_give_what_whole_ones_give(folders, family, parallel, ranks):
    whole = alone(folders[family]).velocity

    for rank in ranks.run(degrees_of(parallel).ranks, drawn, folders[family], parallel):
        assert near(rank.velocity, whole, 1e-5)


@pytest.mark.parametrize("parallel", ["tensor=2", "tensor=3", "tensor=2,ulysses=2"])
@pytest.mark.parametrize("lora", ["flux1", "flux2", "flux1 lokr", "flux2 lokr"])
def test_a_lora_gives_beside_shares_what_it_gives_beside_the_whole(
    folders, loras, lora, parallel, ranks
):
    family = lora.partition(" ")[0]
    given = (folders[family], parallel, "fp32", loras[lora])
    whole = alone(folders[family], "", "fp32", loras[lora]).velocity
    bare = alone(folders[family]).velocity
    assert relative_l2(whole, bare) > 0.1, "the LoRA does nothing"

    for rank in ranks.run(degrees_of(parallel).ranks, drawn, *given):
        assert near(rank.velocity, whole, 1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["bf16", "int8", "nf4", "fp4"])
@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_shares_in_fewer_bits_are_as_near_as_the_whole(folders, loras, family, kind, lora, ranks):
    more = (loras[family],) if lora else ()
    full = alone(folders[family], "", "fp32", *more).velocity
    whole = alone(folders[family], "", kind, *more).velocity

    for rank in ranks.run(3, drawn, folders[family], "tensor=3", kind, *more):
        distance = relative_l2(rank.velocity, full)
        assert 0 < distance < 1.25 * relative_l2(whole, full)  # blocks begin elsewhere


def remembered(folder, mode):
    """Bytes of keys that a rank keeps of a picture of one row, and those that were predicted."""
    crew = Crew(Mesh.join(degrees_of("tensor=2,ulysses=2")))
    model = open_model(str(folder), "cpu", crew=crew)
    divide(model, crew)
    width, height = SIZE
    (conditioning,) = model.encode(["a boat, 2 birds"])
    context = model.context(
        conditioning, width=width, height=height, guidance=model.spec.guidance, sigmas=SIGMAS
    )
    x = model.noise(torch.Generator().manual_seed(3), width, height)[None]
    way = approximation_of(f"{mode},sync=1")
    turn = crew.remembering(way)
    for _ in SIGMAS:
        crew.evaluate(1, lambda own: model.evaluate(x[own], SIGMAS[:1], [context]), turn)
    kept = turn.bytes
    turn.close()
    a_token = kept_bytes(way, model.spec.info(device="", dtype=""))
    return kept, a_token * (context.image_tokens + context.text_tokens)


@pytest.mark.parametrize("mode", ["piflux", "distrifusion"])
@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_what_may_be_kept_is_predicted_of_the_rank_that_has_a_head_more(
    folders, family, mode, ranks
):
    given = ranks.run(4, remembered, folders[family], mode)

    kept, predicted = zip(*given, strict=True)
    assert {*predicted} == {max(kept)}
    assert min(kept) == max(kept) * 2 // 3  # five heads are three and two


def probed(folder):
    """What a rank sends where the first measures a forward and tells the others."""
    crew = Crew(Mesh.join(degrees_of("tensor=2")))
    model = open_model(str(folder), "cpu", crew=crew)

    def tell(said):
        dist.broadcast_object_list([said], src=0)

    if dist.get_rank() == 0:
        Probe(model, tell, crew).once(2)
        tell(None)
    else:
        follower, heard = Follower(model, None, None, crew), [None]
        while dist.broadcast_object_list(heard, src=0) or heard[0] is not None:
            follower.obey(heard[0])
    return crew.traffic.bytes


def test_ranks_that_hold_weights_together_prepare_a_measured_forward_together(folders, ranks):
    first, second = ranks.run(2, probed, folders["flux1"])

    assert first == second > 0


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_ranks_send_what_the_formula_says(folders, family, count, ranks):
    hidden, vectors = HEADS * HEAD_DIM, 12 * DOUBLE + 3 * SINGLE + 2
    if family == "flux2":
        vectors = 17

    given = ranks.run(count, drawn, folders[family], f"tensor={count}")

    for rank in given:
        sums = (2 * DOUBLE + SINGLE) * rank.tokens * hidden * 4
        assert rank.evaluation_bytes == 2 * (count - 1) * sums // count
    once = sum(rank.context_bytes for rank in given)
    assert once == (count - 1) * len(SIGMAS) * vectors * hidden * 4
