"""Blocks of one network on several ranks: the picture of one rank, and what each of them holds."""

import pytest
import torch
from safetensors.torch import save_file

from fluxline.approximation import approximation_of
from fluxline.degrees import Degrees, degrees_of
from fluxline.engine.build import open_model
from fluxline.engine.intake import Intake
from fluxline.engine.ranks import divide
from fluxline.errors import InvalidParams
from fluxline.parallel.crew import Crew
from fluxline.parallel.mesh import Mesh
from fluxline.parallel.sent import sent
from fluxline.parallel.staged import pieces
from fluxline.parallel.way import Way
from fluxline.request import LoraRef
from tests.lora_files import bfl_layers, random_lokr, random_lora
from tests.parallel.test_requests import PROMPTS, alone, apart, asked, drawn_by, psnr
from tests.parallel.test_sent import SMALL
from tests.parallel.test_sequence import forward, transformer

pytestmark = pytest.mark.timeout(300)  # four processes open models


def drawn(parallel, requests):
    """What this rank makes of requests, the blocks that it holds, and bytes of its transformer."""
    crew = Crew(Mesh.join(degrees_of(parallel)))
    opened = open_model("mini", "cpu", "fp32", crew=crew)
    pictures, _, _ = drawn_by(opened, crew, requests)
    blocks = sum(1 for block in opened.transformer.blocks if list(block.parameters()))
    return pictures, blocks, sum(tensor.nbytes for tensor in opened.transformer.parameters())


@pytest.mark.parametrize("parallel", ["stages=2", "stages=3", "cfg=2,stages=2"])
def test_stages_draw_what_one_rank_draws_of_one_row_and_of_many(parallel, ranks):
    requests = [
        asked(PROMPTS[0], steps=4),
        *(asked(PROMPTS[1], steps=4, cfg_scale=scale) for scale in (1.0, 2.0, 3.0)),
        asked(PROMPTS[0], steps=7, sampler="heun"),
    ]
    whole = [alone(request) for request in requests]

    for pictures, _, _ in ranks.run(degrees_of(parallel).ranks, drawn, parallel, requests):
        assert all(apart(one, other) <= 1 for one, other in zip(pictures, whole, strict=True))


def test_a_rank_holds_its_own_blocks_alone(ranks):
    model = open_model("mini", "cpu", "fp32").transformer
    whole = sum(tensor.nbytes for tensor in model.parameters())
    of_blocks = sum(tensor.nbytes for block in model.blocks for tensor in block.parameters())
    of_blocks += sum(tensor.nbytes for tensor in model.modulation.parameters())  # shared out too
    told = ranks.run(3, drawn, "stages=3", [asked(steps=1)])

    assert sum(blocks for _, blocks, _ in told) == len(model.blocks)
    assert max(blocks for _, blocks, _ in told) <= -(-len(model.blocks) // 3)
    assert sum(held for _, _, held in told) == of_blocks + 3 * (whole - of_blocks)


def test_what_a_request_asks_of_stages_is_near_and_the_next_is_exact(ranks):
    near, exact = asked(steps=28, parallel=approximation_of("pipefusion")), asked(PROMPTS[1])
    whole = alone(asked(steps=28)), alone(exact)

    for (one, other), _, _ in ranks.run(2, drawn, "stages=2", [near, exact]):
        assert 20 < psnr(one, whole[0]) < 60
        assert apart(other, whole[1]) <= 1


@pytest.mark.parametrize("adapter", [random_lora, random_lokr])
def test_loras_act_in_whichever_stage_their_layers_are(adapter, ranks, tmp_path):
    layers = bfl_layers(open_model("mini", "cpu", "fp32").transformer.config)
    of_blocks = {name: sizes for name, sizes in layers.items() if "_blocks." in name}
    file = tmp_path / "lora.safetensors"
    save_file(adapter(of_blocks), file)
    request = asked(steps=4, loras=[LoraRef(str(file), 1.0)])
    plain, whole = alone(asked(steps=4)), alone(request)

    assert apart(plain, whole) > 8
    for [picture], _, _ in ranks.run(2, drawn, "stages=2", [request]):
        assert apart(picture, whole) <= 1


def sent_in_an_evaluation(rows):
    crew = Crew(Mesh.join(degrees_of("stages=3")))
    torch.manual_seed(0)
    network = transformer()
    run = crew.staged(network, torch.device("cpu"))
    before = crew.traffic.bytes
    whole = forward(network, lambda *given: given, rows, 7, 29)

    def piece(own):
        x, text, modulation, rope = whole
        return run(x[own], text[own], modulation[own], rope[own])

    answer = crew.evaluate(rows, piece)
    return answer, crew.traffic.bytes - before


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_stages_give_what_the_whole_gives_and_send_what_the_formula_says(rows, ranks):
    network = transformer()
    with torch.inference_mode():
        whole = forward(network, network, rows, 7, 29)

    for rank, (answer, counted) in enumerate(ranks.run(3, sent_in_an_evaluation, rows)):
        assert (answer - whole).abs().max() <= 1e-5 * whole.abs().max()
        assert counted == sent(
            SMALL, Way(degrees=Degrees(stages=3)), image=29, rows=rows, rank=rank,
            is_synchronous=True,
        ).total  # fmt: skip


def offered(parallel):
    crew = Crew(Mesh.join(degrees_of(parallel)))
    opened = open_model("mini", "cpu", "fp32", crew=crew)
    divide(opened, crew)
    return opened.spec


def test_stages_may_be_asked_for_pipefusion_alone(ranks):
    spec = ranks.run(2, offered, "stages=2")[0]
    assert (spec.ranks, spec.approximations) == (2, ("pipefusion",))
    assert ranks.run(4, offered, "cfg=2,stages=2")[0].approximations == ()
    intake = Intake(spec, lambda loras: (), is_technical=False)
    with pytest.raises(InvalidParams, match="cannot be drawn by piflux here; there is pipefusion"):
        intake.jobs_of(asked(parallel=approximation_of("piflux")))


def test_stages_go_with_no_other_way_to_divide_a_picture():
    with pytest.raises(InvalidParams, match="stages go with cfg and data"):
        degrees_of("stages=2,ulysses=2")


@pytest.mark.parametrize(("rows", "stages"), [(1, 4), (2, 4), (8, 4), (9, 4), (30, 2)])
def test_rows_go_in_pieces_as_equal_as_may_be(rows, stages):
    made = pieces(rows, stages)
    lengths = [piece.stop - piece.start for piece in made]

    assert sum(lengths) == rows
    assert max(lengths) - min(lengths) <= 1
    assert len(made) == min(rows, 2 * stages)
