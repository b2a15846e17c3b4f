"""Write a diffusers folder's transformer in BFL's names: the inverse of what we read."""

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WHOLE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
FUSED = {
    "img_attn.qkv": ("to_q", "to_k", "to_v"),
    "txt_attn.qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}


def save_as_bfl(folder: Path, target: Path) -> Path:
    """Copy a model folder, its transformer/ replaced by flux2-test.safetensors."""
    shutil.copytree(folder, target, dirs_exist_ok=True, ignore=lambda _, __: ["transformer"])
    theirs = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(bfl_names(theirs), target / "flux2-test.safetensors")
    return target


def bfl_names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and fuse, after the conversion that diffusers does on loading (reversed)."""
    out = {f"{WHOLE[n]}.weight": t for n, t in _stripped(theirs) if n in WHOLE}
    scale, shift = theirs["norm_out.linear.weight"].chunk(2)
    out["final_layer.adaLN_modulation.1.weight"] = torch.cat((shift, scale))
    for name, tensor in _stripped(theirs):
        if match := re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", name):
            single, i, rest = match.groups()
            known = (SINGLE if single else DOUBLE).get(rest)
            if known is not None:
                kind = "scale" if "norm" in known else "weight"
                out[f"{'single' if single else 'double'}_blocks.{i}.{known}.{kind}"] = tensor
            elif rest in ("attn.to_q", "attn.add_q_proj"):
                for fused, parts in FUSED.items():
                    qkv = [theirs[f"transformer_blocks.{i}.attn.{p}.weight"] for p in parts]
                    out[f"double_blocks.{i}.{fused}.weight"] = torch.cat(qkv)
    return {name: tensor.contiguous() for name, tensor in out.items()}


def _stripped(theirs: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name.removesuffix(".weight"), tensor) for name, tensor in theirs.items()]
