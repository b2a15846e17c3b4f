"""What leaves training says what the trained model says."""

import torch

from fluxline.models.flux1.transformer import FluxTransformer
from tests.models.flux1.oracle import (
    Inputs,
    diffusers_model,
    evaluate_ours,
    evaluate_theirs,
    ours_from,
    small_config,
)
from tests.models.nearness import relative_l2
from training import export, guide, lora, resume


def test_a_trained_lora_means_the_same_to_diffusers():
    config = small_config()
    theirs = diffusers_model(config)
    ours, template = ours_from(theirs, config), theirs.state_dict()
    inputs = Inputs.random(config, [(8, 8), (4, 16)])
    plain = evaluate_ours(ours, inputs)
    pairs = lora.adapt(ours)
    for pair in pairs.values():
        torch.nn.init.normal_(pair.b, std=0.02)
        pair.a.data = pair.a.data.half().float()  # the file is in half precision
        pair.b.data = pair.b.data.half().float()
    tensors = lora.exported(pairs, config, template)
    theirs.load_lora_adapter({n: t.float() for n, t in tensors.items()}, prefix="transformer")
    adapted = evaluate_ours(ours, inputs)
    assert relative_l2(adapted, evaluate_theirs(theirs, inputs)) <= 1e-5
    assert relative_l2(adapted, plain) > 0.01


def test_the_export_of_a_transformer_is_diffusers_own():
    config = small_config(guidance=True)
    theirs = diffusers_model(config)
    again = export.diffusers_transformer(ours_from(theirs, config)).state_dict()
    assert all(torch.equal(again[n], tensor) for n, tensor in theirs.state_dict().items())


def test_weights_without_guidance_draw_as_those_with_it_at_one():
    config = small_config(guidance=True)
    guided = ours_from(diffusers_model(config), config)
    plain = FluxTransformer(small_config()).eval()
    plain.load_state_dict(resume.unguided(guided))
    inputs = Inputs.random(config, [(8, 8)])
    inputs.guidance[:] = 1.0
    asked = evaluate_ours(guided, inputs)
    assert relative_l2(evaluate_ours(plain, inputs), asked) <= 1e-5


def test_a_student_begins_as_its_teacher_at_any_guidance():
    config = small_config()
    teacher = ours_from(diffusers_model(config), config)
    student = guide.student_of(teacher).eval()
    inputs = Inputs.random(student.config, [(8, 8), (4, 16)])
    assert relative_l2(evaluate_ours(student, inputs), evaluate_ours(teacher, inputs)) <= 1e-6
