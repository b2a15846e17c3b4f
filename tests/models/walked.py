"""A forward of a model, walked in two parts as ranks that pass it on do."""

import torch

from fluxline.ops.attention import attend


def walked(model, x, sigma, contexts):
    """Velocity of tokens x (R, N, C), by what the model says its network is told."""
    told, network = model.told(contexts), model.transformer
    modulation = told.modulation(sigma)
    image, text = network.enter(x.to(model.dtype)), told.text
    blocks = network.bound_blocks(modulation)
    for stage in (blocks[:1], blocks[1:]):
        for block in stage:
            image, text = block(image, text, told.rope, attend)
    return network.leave(image, modulation).float()


def rows_of(model, prompts, **more):
    """Noise of some rows, and what each needs."""
    sigmas = (0.9, 0.4)
    asked = {"width": 64, "height": 32, "guidance": model.spec.guidance, "sigmas": sigmas, **more}
    contexts = [model.context(made, **asked) for made in model.encode(prompts)]
    noise = [model.noise(torch.Generator().manual_seed(n), 64, 32) for n in range(len(prompts))]
    return torch.stack(noise), contexts
