"""vLLM's CPU build, greedy, all requests of a work at once."""

from __future__ import annotations

from typing import Any

from turns import job, missing, serve

try:
    from vllm import LLM, SamplingParams
except ImportError as error:
    missing(error.name or "vllm")


def main() -> None:
    told = job()
    engine = LLM(told["model"], dtype=told["dtype"], skip_tokenizer_init=True, max_model_len=2048, enable_prefix_caching=False)

    def run(work: str, given: Any) -> list[list[int]]:
        prompts: Any = [{"prompt_token_ids": ids} for ids, _ in given]
        settings = [SamplingParams(temperature=0.0, max_tokens=want, ignore_eos=True, detokenize=False) for _, want in given]
        return [list(o.outputs[0].token_ids) for o in engine.generate(prompts, settings, use_tqdm=False)]

    serve(told["works"], run, {})


if __name__ == "__main__":
    main()
