"""Write a diffusers folder's transformer in BFL's names: the inverse of what we read."""

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STREAM = {"img": ("to_q", "to_k", "to_v", "to_out.0", "", "ff", "norm1"),
          "txt": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "added_", "ff_context",
                  "norm1_context")}  # fmt: skip


def save_as_bfl(folder: Path, target: Path) -> Path:
    """Copy a model folder, its transformer/ replaced by flux1-test.safetensors."""
    shutil.copytree(folder, target, dirs_exist_ok=True, ignore=lambda _, __: ["transformer"])
    theirs = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(bfl_names(theirs), target / "flux1-test.safetensors")
    return target


def bfl_names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and fuse, after the conversion script that diffusers publishes (reversed)."""
    out: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for ours, name in (
            ("img_in", "x_embedder"),
            ("txt_in", "context_embedder"),
            ("final_layer.linear", "proj_out"),
            *(
                (f"{b}.{layer}_layer", f"time_text_embed.{d}.linear_{i}")
                for b, d in (
                    ("time_in", "timestep_embedder"),
                    ("vector_in", "text_embedder"),
                    ("guidance_in", "guidance_embedder"),
                )
                for i, layer in ((1, "in"), (2, "out"))
            ),
        ):
            if f"{name}.{kind}" in theirs:
                out[f"{ours}.{kind}"] = theirs[f"{name}.{kind}"]
        scale, shift = theirs[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat((shift, scale))
    for i in _numbers(theirs, "transformer_blocks"):
        for stream, names in STREAM.items():
            _double(out, theirs, i, stream, names)
    for i in _numbers(theirs, "single_transformer_blocks"):
        _single(out, theirs, i)
    return {name: tensor.contiguous() for name, tensor in out.items()}


def _double(out, theirs, i, stream, names) -> None:
    q, k, v, proj, added, ff, norm = names
    block, source = f"double_blocks.{i}.{stream}", f"transformer_blocks.{i}"
    for kind in ("weight", "bias"):
        qkv = [theirs[f"{source}.attn.{part}.{kind}"] for part in (q, k, v)]
        out[f"{block}_attn.qkv.{kind}"] = torch.cat(qkv)
        out[f"{block}_attn.proj.{kind}"] = theirs[f"{source}.attn.{proj}.{kind}"]
        out[f"{block}_mlp.0.{kind}"] = theirs[f"{source}.{ff}.net.0.proj.{kind}"]
        out[f"{block}_mlp.2.{kind}"] = theirs[f"{source}.{ff}.net.2.{kind}"]
        out[f"{block}_mod.lin.{kind}"] = theirs[f"{source}.{norm}.linear.{kind}"]
    for short, full in (("q", "query"), ("k", "key")):
        norm_weight = theirs[f"{source}.attn.norm_{added}{short}.weight"]
        out[f"{block}_attn.norm.{full}_norm.scale"] = norm_weight


def _single(out, theirs, i) -> None:
    block, source = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
    for kind in ("weight", "bias"):
        parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        out[f"{block}.linear1.{kind}"] = torch.cat([theirs[f"{source}.{p}.{kind}"] for p in parts])
        out[f"{block}.linear2.{kind}"] = theirs[f"{source}.proj_out.{kind}"]
        out[f"{block}.modulation.lin.{kind}"] = theirs[f"{source}.norm.linear.{kind}"]
    for short, full in (("q", "query"), ("k", "key")):
        out[f"{block}.norm.{full}_norm.scale"] = theirs[f"{source}.attn.norm_{short}.weight"]


def _numbers(theirs: dict[str, Tensor], blocks: str) -> list[int]:
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in theirs)
    return sorted({int(m[1]) for m in found if m})
