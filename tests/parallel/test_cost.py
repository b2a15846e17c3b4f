"""The parts of what a picture costs are those of their formulas."""

from dataclasses import replace

import pytest
import torch

from fluxline.approximation import time_of
from fluxline.degrees import Degrees
from fluxline.engine.build import open_model
from fluxline.models.flux1.transformer import FluxConfig, FluxTransformer
from fluxline.models.flux2.transformer import Flux2Config, Flux2Transformer
from fluxline.models.registry import MODELS
from fluxline.parallel.cost import cost
from fluxline.parallel.machine import Link, machine_of
from fluxline.parallel.memory import memory
from fluxline.parallel.network import DEV, DEV_2, KLEIN_4B, KLEIN_9B, MINI, NETWORKS, SCHNELL
from fluxline.parallel.pipefusion import held_of
from fluxline.parallel.way import Task, Way

TASK = Task(width=1024, height=1024, steps=28)
MACHINE = machine_of("8x80GB-nvlink")
FAST = replace(MACHINE, block_s=0.0, links=(Link(cards=256, bytes_per_s=1e18, latency_s=0.0),))
"""Whose exchanges and launches take no time."""


def split(**degrees):
    return Way(degrees=Degrees(**degrees))


def about(approximation, count, **more):
    return Way(degrees=Degrees(ulysses=count), approximation=approximation, **more)


def of_flux1(network, *, guidance):
    config = FluxConfig(
        in_channels=64, out_channels=64, depth_double=network.double, depth_single=network.single,
        head_dim=network.hidden // network.heads, heads=network.heads, text_dim=4096,
        pooled_dim=768, guidance=guidance, axes=(16, 56, 56),
    )  # fmt: skip
    return FluxTransformer(config)


def of_flux2(network, *, text_dim, guidance=False):
    config = Flux2Config(
        in_channels=128, out_channels=128, depth_double=network.double,
        depth_single=network.single, head_dim=128, heads=network.heads, inner=3 * network.hidden,
        text_dim=text_dim, guidance=guidance, axes=(32, 32, 32, 32), theta=2000.0,
    )  # fmt: skip
    return Flux2Transformer(config)


def weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_networks_have_the_weights_of_their_transformers():
    with torch.device("meta"):
        real = {
            DEV: of_flux1(DEV, guidance=True),
            SCHNELL: of_flux1(SCHNELL, guidance=False),
            KLEIN_4B: of_flux2(KLEIN_4B, text_dim=7680),
            KLEIN_9B: of_flux2(KLEIN_9B, text_dim=12288),
            DEV_2: of_flux2(DEV_2, text_dim=15360, guidance=True),
        }
    for network, module in real.items():
        told = network.transformer_bytes / network.weight_bytes
        assert told == pytest.approx(weights(module), rel=1e-4), network.name


def test_networks_go_by_the_names_of_models():
    assert set(NETWORKS) <= set(MODELS)


def test_mini_has_the_weights_of_the_embedded_model():
    clip, t5, transformer, *vae = (weights(n.module) for n in open_model("mini", "cpu").networks())
    assert MINI.transformer_bytes / 4 == pytest.approx(transformer, rel=1e-3)
    assert MINI.encoder_weights == pytest.approx(clip + t5, rel=1e-3)
    assert MINI.vae.weights == pytest.approx(vae[0], rel=1e-3)


def test_products_and_attention_are_counted_by_their_formulas():
    seconds = cost(DEV, MACHINE, TASK, Way()).seconds
    tokens, wide, layers = 4096 + 512, 3072, 57
    assert seconds.products * MACHINE.flops == pytest.approx(
        28 * layers * 24 * wide**2 * tokens, rel=1e-9
    )
    assert seconds.attention * MACHINE.flops == pytest.approx(
        28 * layers * 4 * tokens**2 * wide, rel=1e-9
    )
    assert seconds.blocks == pytest.approx(28 * layers * MACHINE.block_s)
    assert (seconds.exchange, seconds.idle) == (0, 0)


@pytest.mark.parametrize(
    "way",
    [
        split(ulysses=4),
        split(ring=4),
        split(ulysses=2, ring=2),
        split(tensor=4),
        about("piflux", 4),
        about("distrifusion", 4),
    ],
    ids=str,
)
def test_without_exchanges_four_ranks_are_four_times_as_fast(way):
    alone, four = (cost(DEV, FAST, TASK, one).seconds for one in (Way(), way))
    assert alone.products == pytest.approx(4 * four.products)
    assert alone.attention == pytest.approx(4 * four.attention)
    assert four.exchange == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("patches", [1, 2, 3, 4, 8])
def test_pipefusion_takes_the_evaluations_of_its_formula(patches):
    stages, steps = 3, 28
    alone = cost(DEV, FAST, TASK, Way()).seconds
    seconds = cost(DEV, FAST, TASK, about("pipefusion", stages, patches=patches)).seconds
    one = (alone.products + alone.attention) / steps
    took = seconds.products + seconds.attention + seconds.idle
    assert took == pytest.approx(time_of(steps, 1, patches, stages) * one)


def test_text_that_is_longer_than_other_patches_holds_stages_up():
    few, many = (
        cost(DEV, FAST, TASK, about("pipefusion", stages)).seconds.idle for stages in (4, 32)
    )
    assert many > 5 * few


def test_stages_remember_what_is_counted_of_them():
    held = memory(DEV, TASK, about("pipefusion", 4)).remembered
    assert held == held_of(4096 + 512, DEV.hidden, DEV.value_bytes, DEV.layers, 4)


def test_heads_that_do_not_divide_wait_for_who_has_most():
    even, uneven = (
        cost(DEV, FAST, TASK, split(ulysses=ulysses)).seconds.attention for ulysses in (12, 13)
    )
    assert uneven == even


def test_a_ring_covers_what_passes_while_it_attends():
    slow = replace(MACHINE, links=(Link(cards=256, bytes_per_s=1e9, latency_s=0.0),))
    covered = cost(DEV, MACHINE, replace(TASK, width=4096, height=4096), split(ring=2))
    waiting = cost(DEV, slow, TASK, split(ring=2))
    assert covered.seconds.exchange < 1e-3 * covered.seconds.total
    assert covered.covered_s > 0
    passing = 28 * waiting.sent.ring / 1e9
    assert waiting.seconds.exchange == pytest.approx(passing - waiting.seconds.attention / 2, 0.01)


def test_distrifusion_covers_what_piflux_does_not_send():
    slow = replace(MACHINE, links=(Link(cards=256, bytes_per_s=20e9, latency_s=0.0),))
    piflux, distrifusion = (
        cost(DEV, slow, TASK, about(name, 4)) for name in ("piflux", "distrifusion")
    )
    assert piflux.sent.total < 1e-3 * distrifusion.sent.total
    assert distrifusion.covered_s == pytest.approx(distrifusion.sent.keys / 20e9)


def test_replicas_share_pictures_and_cost_one_picture_nothing():
    many = replace(TASK, pictures=8)
    one = cost(DEV, MACHINE, TASK, Way()).seconds.total
    for data, rounds in ((8, 1), (5, 2), (1, 8)):
        total = cost(DEV, MACHINE, many, split(data=data)).seconds.total
        assert total == pytest.approx(rounds * one, rel=0.01)


def test_both_rows_of_true_guidance_at_once_take_as_long_as_one():
    steered = replace(TASK, is_steered=True)
    one = cost(DEV, FAST, TASK, Way()).seconds.products
    assert cost(DEV, FAST, steered, Way()).seconds.products == pytest.approx(2 * one)
    assert cost(DEV, FAST, steered, split(cfg=2)).seconds.products == pytest.approx(one)


def test_bands_divide_what_decoding_takes_but_for_its_middle():
    whole, banded = (cost(DEV, FAST, TASK, Way(bands=bands)).seconds.decode for bands in (1, 8))
    assert 5 < whole / banded < 8


def gigabytes(way, side=1024):
    task = Task(width=side, height=side, steps=28)
    return memory(DEV, task, way, with_decoding=False).total / 1e9


def test_memory_is_what_xdit_measured_but_for_stages():
    """Whose figures of pipefusion (10.9 and 12.3 GB) are less than T5 and a stage's weights."""
    assert gigabytes(Way()) == pytest.approx(34.2, rel=0.02)
    assert gigabytes(Way(), side=2048) == pytest.approx(35.4, rel=0.02)
    assert gigabytes(split(ulysses=8)) == pytest.approx(33.9, rel=0.02)
    assert gigabytes(split(ulysses=8), side=2048) == pytest.approx(34.1, rel=0.02)


@pytest.mark.parametrize(("side", "told"), [(512, 1.08), (1024, 3.23), (2048, 11.8), (4096, 46)])
def test_piflux_remembers_the_keys_of_the_whole_picture(side, told):
    task = Task(width=side, height=side, steps=28)
    held = memory(DEV, task, about("piflux", 4)).remembered
    assert held / 1e9 == pytest.approx(told, rel=0.01)


def test_stages_and_tensor_hold_less_weights():
    whole, staged, cut = (
        memory(DEV, TASK, way).weights for way in (Way(), about("pipefusion", 8), split(tensor=8))
    )
    assert staged < 0.5 * whole
    assert cut < 0.6 * whole
