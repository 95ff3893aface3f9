"""llama.cpp, greedy, one sequence at a time. Writes the model's weights as GGUF first, in f32 or Q8_0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turns import job, missing, serve

try:
    import gguf
    import llama_cpp
    import numpy as np
except ImportError as error:
    missing(error.name or "llama-cpp-python")


def tensors(folder: Path) -> dict[str, Any]:
    """The weights in fp32, from a safetensors file of bf16 or fp32."""
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    found = {}
    for name, about in json.loads(raw[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        a, b = (8 + size + at for at in about["data_offsets"])
        if about["dtype"] == "BF16":
            values = (np.frombuffer(raw[a:b], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw[a:b], np.float32)
        found[name] = values.reshape(about["shape"])
    return found


def interleaved(w_NK: Any, heads: int) -> Any:
    """Rows in the order of rotary positions that turn neighbours, as llama.cpp's do."""
    return w_NK.reshape(heads, 2, w_NK.shape[0] // heads // 2, w_NK.shape[1]).swapaxes(1, 2).reshape(w_NK.shape)


def write(folder: Path, path: Path, kind: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(float((config.get("rope_parameters") or config)["rope_theta"]))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for name, values in tensors(folder).items():
        if name in whole:
            target = whole[name]
        else:
            _, _, layer, part = name.split(".", 3)
            target = f"blk.{layer}.{names[part.removesuffix('.weight')]}.weight"
        if target.endswith(("attn_q.weight", "attn_k.weight")):
            values = interleaved(values, heads if "attn_q" in target else kv_heads)
        if values.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    told = job()
    path = Path(told["folder"]) / f"{Path(told['model']).parent.name}-{told['kind']}.gguf"
    if not path.exists():
        write(Path(told["model"]), path, gguf.GGMLQuantizationType[told["kind"]])
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp does not load the model")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 2048, told["threads"], told["threads"]
    context = llama_cpp.llama_init_from_model(model, settings)
    greedy = llama_cpp.llama_sampler_init_greedy()

    def step(ids: list[int]) -> int:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama.cpp failed")
        return int(llama_cpp.llama_sampler_sample(greedy, context, -1))

    def run(work: str, given: Any) -> list[list[int]]:
        answers = []
        for ids, want in given:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            answer = [step(ids)]
            while len(answer) < want:
                answer.append(step(answer[-1:]))
            answers.append(answer)
        return answers

    serve(told["works"], run, {})


if __name__ == "__main__":
    main()
