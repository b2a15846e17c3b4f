"""A random small CLIP, saved as transformers saves the real ones."""

import string
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip import CLIPImageProcessorPil


def save_random_clip(folder: Path) -> Path:
    """Write a CLIP folder: 24 px, 12 tokens."""
    torch.manual_seed(3)
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    words = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=12
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                "num_attention_heads": 4,
                "vocab_size": len(pieces),
                "max_position_embeddings": 12,
                "bos_token_id": words.bos_token_id,
                "eos_token_id": words.eos_token_id,
                "pad_token_id": words.pad_token_id,
            },
            vision_config={**tower, "num_attention_heads": 4, "image_size": 24, "patch_size": 8},
            projection_dim=16,
        )
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    ).save_pretrained(folder)
    return folder
