"""transformers' `generate`, greedy: one request at a time, or all of a work in one padded batch until the longest is done."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from turns import job, serve


def main() -> None:
    told = job()
    torch.set_num_threads(told["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(told["model"], dtype=getattr(torch, told["dtype"])).eval()
    model.generation_config.eos_token_id = None

    def run(work: str, given: Any) -> list[list[int]]:
        longest = max(len(ids) for ids, _ in given)
        ids_BT = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in given])
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in given])
        most = max(want for _, want in given)
        config = transformers.GenerationConfig(max_new_tokens=most, do_sample=False, pad_token_id=0, eos_token_id=None)
        with torch.inference_mode():
            out_BT = model.generate(ids_BT, attention_mask=mask_BT, generation_config=config)
        return out_BT[:, longest:].tolist()

    serve(told["works"], run, {})


if __name__ == "__main__":
    main()
