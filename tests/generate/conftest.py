"""Tiny random models, no larger than a test needs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from cairn.generate.constrain import Constrainer
from cairn.tokenizer.load import Tokenizer

from .constrained import trained

VOCAB = 96
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}

FAMILIES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**ROPE),
    "qwen2": lambda: transformers.Qwen2Config(**ROPE),
    "qwen3": lambda: transformers.Qwen3Config(**ROPE, head_dim=8),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=128),
    "gemma2": lambda: transformers.Gemma2Config(**ROPE, head_dim=8, sliding_window=8),
    "mistral": lambda: transformers.MistralConfig(**ROPE, sliding_window=8),
    "mixtral": lambda: transformers.MixtralConfig(**ROPE, num_local_experts=4),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "opt": lambda: transformers.OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128),
    "falcon": lambda: transformers.FalconConfig(**SMALL, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_multi_query": lambda: transformers.FalconConfig(**SMALL, new_decoder_architecture=False, multi_query=True),
    "falcon_alibi": lambda: transformers.FalconConfig(**SMALL, alibi=True, new_decoder_architecture=False, multi_query=False),
    "phi": lambda: transformers.PhiConfig(**SMALL, intermediate_size=48, max_position_embeddings=128),
    "starcoder2": lambda: transformers.Starcoder2Config(**ROPE, sliding_window=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **ROPE, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "olmo2": lambda: transformers.Olmo2Config(**ROPE),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: transformers.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
    "jamba": lambda: transformers.JambaConfig(
        **ROPE, num_experts=2, attn_layer_offset=1, attn_layer_period=2, expert_layer_period=2, expert_layer_offset=1,
        mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False, pad_token_id=0,
    ),
    "mamba": lambda: transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
    "rwkv": lambda: transformers.RwkvConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
}


def build(family: str, seed: int = 0, positions: int | None = None) -> Any:
    """A random model whose next token hangs on the whole prompt, with logits too far apart for rounding to decide."""
    config = FAMILIES[family]()
    if positions is not None:
        config.max_position_embeddings = positions
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data *= 4 if parameter is embedding else 16
    return model


def prompts(count: int, seed: int, low: int = 3, high: int = 40) -> list[list[int]]:
    """Random prompts of random lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(4, VOCAB) for _ in range(rng.randint(low, high))] for _ in range(count)]


@pytest.fixture(scope="session")
def llama() -> Any:
    return build("llama")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Any:
    """Threads cost such models more than they give, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return trained(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def constrainer(tokenizer: Tokenizer) -> Iterator[Constrainer]:
    assert tokenizer.eos_id is not None
    made = Constrainer(tokenizer, [tokenizer.eos_id])
    yield made
    made.close()
