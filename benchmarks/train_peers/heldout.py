"""The held-out loss of a trained model folder, whoever trained it: each document alone, in fp32. Knows transformers only."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM
from worker import job, read_rows, reply


def main() -> None:
    told = job()
    model = AutoModelForCausalLM.from_pretrained(told["model"], dtype="float32").eval()
    total, targets = 0.0, 0
    with torch.no_grad():
        for row_ids, row_mask in read_rows(told["rows"]):
            ids, mask = torch.as_tensor(row_ids).long(), torch.as_tensor(row_mask).bool()
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits[mask[1:]], ids[1:][mask[1:]], reduction="sum"))
            targets += int(mask[1:].sum())
    reply(loss=total / targets, targets=targets)


if __name__ == "__main__":
    main()
