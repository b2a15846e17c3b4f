"""Random small FLUX.2 models of the true architecture, saved as diffusers saves the real ones."""

import json
import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
)
from transformers import (
    LlamaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fluxline.models.flux2.transformer import Flux2Config
from tests.models.flux2.oracle import diffusers_model

TEXT_LENGTH = 48
THOUGHTS = 16  # width of the small language models

QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>{% endif %}{% endif %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[S]{% else %}[I]{% endif %}"
    "{% for part in m.content %}{{ part.text[:9] }}{% endfor %}{% endfor %}"
)


def save_random_klein(
    folder: Path, config: Flux2Config, kind: type = Flux2KleinPipeline, **said: bool
) -> Path:
    """Write a klein: Qwen3 of 28 layers, of which 27 are read. said: of itself, in its index."""
    torch.manual_seed(1)
    words = _qwen_words()
    encoder = Qwen3Config(num_hidden_layers=28, vocab_size=len(words), **_small())
    pipeline = kind(
        transformer=diffusers_model(config),
        vae=_vae(),
        text_encoder=_lively(Qwen3ForCausalLM(encoder)),
        tokenizer=words,
        scheduler=_scheduler(),
        **said,
    )
    return _saved(pipeline, folder)


def save_random_dev(folder: Path, config: Flux2Config) -> Path:
    """Write a dev: Mistral3 of 31 layers, of which 30 are read, and eyes that nobody opens."""
    torch.manual_seed(1)
    words = _mistral_words()
    text = MistralConfig(num_hidden_layers=31, vocab_size=len(words), **_small())
    eyes = PixtralVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=4
    )
    encoder = Mistral3Config(text_config=text, vision_config=eyes, image_token_index=0)
    pipeline = Flux2Pipeline(
        transformer=diffusers_model(config),
        vae=_vae(),
        text_encoder=_lively(Mistral3ForConditionalGeneration(encoder)),
        tokenizer=words,
        scheduler=_scheduler(),
    )
    return _saved(pipeline, folder)


def _saved(pipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    about = {"native_size": [64, 64], "text_length": TEXT_LENGTH, "default_steps": 3}
    (folder / "fluxline.json").write_text(json.dumps(about))
    return folder


def _small() -> dict:
    return {
        "hidden_size": THOUGHTS,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": True,
    }


def _lively(model):
    """Weights so large that every word matters to what the deeper layers think."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.0 if "embed" in name else 0.3)
    return model.eval()


def _qwen_words() -> Qwen2Tokenizer:
    letters = [*string.ascii_lowercase, *string.digits, ",", "_", "Ġ", "Ċ"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    words = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(letters + special)},
        merges=[],
        additional_special_tokens=special[1:],
    )
    words.chat_template = QWEN_CHAT
    return words


def _mistral_words() -> LlamaTokenizer:
    letters = [*string.ascii_letters, *string.digits, ",", ".", "▁", "\n"]
    special = ["<unk>", "<s>", "</s>", "<pad>", "[S]", "[I]"]
    words = LlamaTokenizer(
        vocab={word: i for i, word in enumerate(special + letters)},
        merges=[],
        pad_token="<pad>",
        additional_special_tokens=special[4:],
        padding_side="left",
    )
    words.chat_template = MISTRAL_CHAT
    return words


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def _vae() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        latent_channels=32, block_out_channels=(8, 8, 16, 16), norm_num_groups=4
    )
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()
