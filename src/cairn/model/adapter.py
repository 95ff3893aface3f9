"""Adapters on a frozen base: put on, saved in peft's own layout, loaded, merged. Knows peft and transformers; no rows, no training.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`, as peft writes and reads them, and `base.json`: the digest of
the base that it was trained on, and how that base was held. peft puts its layers into the transformers model in place, so the model
keeps its own face: its body, its embeddings and its packed attention are where they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cairn.errors import UserError, did_you_mean
from cairn.ledger import seeds
from cairn.ledger.digest import folder_digest
from cairn.ledger.record import RECORD, read_record
from cairn.model.adapter_config import AdapterConfig, model_place
from cairn.model.cost import Beside
from cairn.model.folder import require_config
from cairn.model.nf4 import NF4Linear, quantise_linears, write_out_linears

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PREFIX = "base_model.model."
"""What peft puts before the name of every weight."""
PARITY = 1e-4
"""Largest difference of a merged model's logits from those of the adapter on its base, as a share of the largest logit. fp32 rounding
gives about 1e-6; a layer that was merged wrongly, 1e-2 and more."""


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter on it.

    Attributes:
        model: the transformers causal LM, whose adapter's weights alone require a gradient.
        peft: peft's wrapper around it.
    """

    model: Any
    peft: Any

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


# -- what is adapted ------------------------------------------------------------------------------------------------------


def matrices(model: Any) -> dict[str, nn.Module]:
    """Every matrix that can be adapted, by name: linear layers but for the output head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}


def find_targets(model: Any, config: AdapterConfig, where: str = "adapter.targets") -> list[str]:
    """The names that peft is given, sorted; each is the end of a matrix's name. The model may lie on the meta device.

    Raises:
        UserError: a name that no matrix has.
    """
    known = matrices(model)
    wanted = sorted({_last(name) for name in known}) if config.targets == "all-linear" else sorted(set(config.targets))
    head = next((name for name, m in model.named_modules() if m is model.get_output_embeddings()), None)
    found: set[str] = set()
    for target in wanted:
        hits = _ending(target, known)
        if not hits and head is not None and _ending(target, [head]):
            remedy = "train it whole: adapter.train: [head]"
            raise UserError(f"'{target}' is the output head, which has no adapter", where=where, remedy=remedy)
        if not hits:
            remedy = did_you_mean(target, {_last(name) for name in known})
            raise UserError(f"the model '{model.config.model_type}' has no matrix '{target}'", where=where, remedy=remedy)
        # peft goes by the end of a name alone, and would adapt an embedding or a norm that shares it.
        others = set(_ending(target, [name for name, _ in model.named_modules()])) - set(hits)
        found |= set(hits) if others else {target}
    return sorted(found)


def plan_adapter(hf_config: Any, config: AdapterConfig) -> tuple[int, Beside]:
    """Parameters of the base, and what would be trained beside it; counted on the meta device, before any weight is read.

    Raises:
        UserError: as `find_targets`.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager")
    known, trained, low_rank = matrices(model), 0, 0
    adapted = {name for target in find_targets(model, config) for name in _ending(target, known)}
    for name in adapted:
        layer = known[name]
        sides = list(layer.weight.shape)  # type: ignore[arg-type]
        out = layer.out_features if isinstance(layer, nn.Linear) else sides[1]
        trained += int(out) if config.kind == "ia3" else config.rank * sum(sides) + (int(out) if config.kind == "dora" else 0)
        low_rank += 0 if config.kind == "ia3" else config.rank
    layers = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    whole = {id(p): p for name in config.train for p in layers[name].parameters()}
    kind = "lora" if config.kind == "rslora" else config.kind
    head = layers["head"] is not None and any(id(p) in whole for p in layers["head"].parameters())
    trained += sum(p.numel() for p in whole.values())
    return sum(p.numel() for p in model.parameters()), _described(model, adapted, kind, trained, low_rank, head, config.base == "nf4")


def adapter_of(model: Any) -> Beside | None:
    """The same of a model that has its adapter on; None of one that has none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    if not adapted:
        return None
    ranks = [module.r["default"] for module in adapted.values() if "default" in getattr(module, "r", {})]
    # The lengths that DoRA keeps apart; IA3 has no rank.
    apart = any(len(getattr(module, "lora_magnitude_vector", ())) for module in adapted.values())
    kind = "ia3" if not ranks else "dora" if apart else "lora"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    output = model.get_output_embeddings()
    head = output is not None and any(p.requires_grad for p in output.parameters())
    return _described(model, adapted, kind, trained, sum(ranks), head, any(isinstance(m, NF4Linear) for m in model.modules()))


def _described(model: Any, adapted: Iterable[str], kind: str, trained: int, low_rank: int, head: bool, four_bits: bool) -> Beside:
    """A `Beside` of these, with what the names of the adapted matrices tell.

    A feed-forward block's names differ from family to family; those that do not lie in an attention are taken for its.
    """
    feed_forward = any(not any("att" in part for part in name.split(".")[:-1]) for name in adapted)
    layers = model.config.get_text_config().num_hidden_layers
    return Beside(kind=kind, trained=trained, low_rank=low_rank / layers, feed_forward=feed_forward, head=head, four_bits=four_bits)


def base_config(folder: Path) -> Any:
    """The transformers configuration of the model in `folder`, or beneath the adapter in it.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoConfig

    while is_adapter(folder):
        folder = base_of(folder)
    if folder.is_dir():
        require_config(folder)
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read the model's configuration: {reason}", where=str(folder), remedy="check the folder") from error


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _ending(target: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == target or name.endswith("." + target)]


# -- putting an adapter on ------------------------------------------------------------------------------------------------


def load_base(folder: Path, held: str) -> Any:
    """The base of an adapter in evaluation mode: weights in fp32, or its matrices in 4 bits where `held` is "nf4".

    Raises:
        UserError: as `load_model`, and for a family most of whose weights do not lie in linear layers.
    """
    from cairn.model.load import load_model

    if held != "nf4":
        return load_model(folder, "float32")
    # Read in 16 bits: in 32 a model would take eight times the memory that it takes afterwards.
    model = load_model(folder, "bfloat16")
    rounded, left = quantise_linears(model.base_model)
    left -= model.get_input_embeddings().weight.numel()
    if rounded < left:
        what = f"only {rounded / (rounded + left):.0%} of the weights in the blocks of '{model.config.model_type}' lie in linear layers"
        raise UserError(what, where="adapter.base", remedy="set base: full")
    for p in model.parameters():
        p.data = p.data.float()
    return model


def grow_vocabulary(model: Any, size: int) -> None:
    """Give the embedding and the head rows for `size` ids; each new one is the mean of the old ones, so nothing is drawn."""
    old = model.get_input_embeddings().weight.shape[0]
    if size <= old:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # transformers fills new rows from the global generator, before they are set here.
        model.resize_token_embeddings(size, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for p in layer.parameters() if layer is not None else ():
                p[old:] = p[:old].float().mean(0).to(p.dtype)


def attach(model: Any, config: AdapterConfig, seed: int) -> Adapted:
    """Freeze `model` and put a fresh adapter on it, in place, whose random weights are a function of `seed`.

    Raises:
        UserError: as `find_targets`, and for a head or an embedding that is to be trained and is not there.
    """
    targets = find_targets(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed(seed, "adapter"))
        wrapped = _wrap(model, _peft_config(config, targets))
    layers = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name in config.train:
        for p in layers[name].parameters():
            p.requires_grad_(True)
    for name, module in model.named_modules():
        if ".lora_dropout." in name and isinstance(module, nn.Dropout):
            # Says that whoever trains draws it from a seed; dropout of the base is switched off in training.
            module.seeded = True  # type: ignore[assignment]
    return Adapted(model, wrapped)


def _peft_config(config: AdapterConfig, targets: list[str]) -> Any:
    import peft

    if config.kind == "ia3":
        # Factors on all outputs. The paper's factor on the inner activation is the one on the outputs of a gated block's up projection.
        return peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=[])
    return peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=targets, r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
        use_rslora=config.kind == "rslora", use_dora=config.kind == "dora",
    )  # fmt: skip


def _wrap(model: Any, peft_config: Any) -> Any:
    import warnings

    import peft

    with warnings.catch_warnings():
        # peft tells of transposed layers (GPT-2's), which it then treats as it must.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # A base that lies elsewhere now is known by its digest, or was named by the user.
        warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
        # It asks transformers by a name that is on its way out there.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return peft.get_peft_model(model, peft_config)


# -- files ----------------------------------------------------------------------------------------------------------------


def save_adapter(
    adapted: Adapted, weights: Mapping[str, Tensor], folder: Path, base: Mapping[str, Any], *, stop_ids: list[int] | None = None
) -> None:
    """Write an adapter folder. Its bytes are a function of the weights and the configuration alone.

    Args:
        adapted: the model with its adapter.
        weights: the trained weights by the model's own names, in fp32.
        folder: where to.
        base: what `base.json` tells: `digest` of the base's folder, `held`, and the vocabulary's size as `vocabulary`.
        stop_ids: what ends a generation, where the base's own stop tokens are not right.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    named = {PREFIX + name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    state = get_peft_model_state_dict(adapted.peft, state_dict=named, save_embedding_layers=False)
    # Embeddings and heads that were trained whole keep their names; peft reads them back under these.
    state |= {name: tensor for name, tensor in named.items() if _is_whole(name)}
    assert len(state) == len(named), "a trained weight would not be saved"
    settings = adapted.peft.peft_config["default"].to_dict() | {"inference_mode": True}
    # peft keeps targets in a set, whose order changes from process to process.
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    for name, value in ((CONFIG, settings), (BASE, dict(base))):
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    if stop_ids:
        adapted.model.generation_config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
        adapted.model.generation_config.save_pretrained(str(folder))


def _is_whole(name: str) -> bool:
    """Whether a weight is one of the model's own rather than one that peft has put in."""
    return "default" not in name.split(".")


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> Path:
    """Where the base of a trained adapter lies, as the record of its artifact tells.

    Raises:
        UserError: there is no record, or the base is no longer where it was.
    """
    remedy = "merge it with its base: cairn merge FOLDER DIR --base BASE"
    if not (folder.parent / RECORD).is_file():
        raise UserError("this is an adapter without its base", where=str(folder), remedy=remedy)
    record = read_record(folder.parent / RECORD)
    file = record.files.get("checkpoint")
    base = model_place(folder.parent.parent / record.inputs[str(record.config["init"])].key) if file is None else Path(file.path)
    if not base.is_dir():
        raise UserError("the base of this adapter is no longer there", where=str(base), remedy=f"bring it back, or {remedy}")
    return base


def load_on_base(folder: Path, base: Path) -> Adapted:
    """The adapter in `folder` on its base, in fp32 and in evaluation mode.

    Raises:
        UserError: an adapter of another base, of a kind that has no weights in the layers, or damaged files.
    """
    import peft
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        told = json.loads((folder / BASE).read_text(encoding="utf-8")) if (folder / BASE).is_file() else {}
        settings, tensors = peft.PeftConfig.from_pretrained(str(folder)), load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read the adapter: {reason}", where=str(folder), remedy="give the whole adapter folder") from error
    if told and folder_digest(base) != told["digest"]:
        remedy = "give the base that it was trained on; its base.json tells the digest"
        raise UserError("the adapter was trained on another base", where=f"{folder} on {base}", remedy=remedy)
    model = load_base(base, told.get("held", "full"))
    grow_vocabulary(model, int(told.get("vocabulary", 0)))
    with torch.random.fork_rng(devices=[]):
        try:
            wrapped = _wrap(model, settings)
            result: Any = set_peft_model_state_dict(wrapped, tensors)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the adapter does not fit the base: {reason}", where=str(folder), remedy="check the base") from error
    lacking = sorted(set(get_peft_model_state_dict(wrapped, save_embedding_layers=False)) - set(tensors))
    if result.unexpected_keys or lacking:
        name = [*result.unexpected_keys, *lacking][0]
        raise UserError(f"the adapter does not fit the base: '{name}' is on one side only", where=str(folder), remedy="check the base")
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return Adapted(model.eval(), wrapped.eval())


# -- merging --------------------------------------------------------------------------------------------------------------


def merged(adapted: Adapted) -> Any:
    """The model with the adapter's weights added to its own, in place; a base in 4 bits is written out."""
    write_out_linears(adapted.model)
    try:
        return adapted.peft.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapter cannot be merged: {error}", remedy="train again at a lower rate") from error


def merge_folder(folder: Path, base: Path, out: Path) -> float:
    """Merge an adapter into its base, write the model's weights and configuration into `out`, and compare what was written.

    Returns:
        the largest difference of a logit on the probe, as a share of the largest logit.

    Raises:
        UserError: as `load_on_base`, or a difference beyond `PARITY`; `out` is not to be used then.
    """
    from cairn.model.load import load_model, save_model

    adapted = load_on_base(folder, base)
    before = probe_logits(adapted.model)
    save_model(merged(adapted), out)
    del adapted
    return check_parity(before, probe_logits(load_model(out)), where=str(out))


def check_parity(before: Tensor, after: Tensor, where: str) -> float:
    """How far two logits of the probe lie apart, as a share of the largest.

    Raises:
        UserError: further than `PARITY`.
    """
    apart = float((after - before).abs().max()) / max(1e-30, float(before.abs().max()))
    if not apart <= PARITY:
        what = f"the merged model is not the adapter on its base: logits differ by {apart:.1e} of the largest one, {PARITY:.0e} is allowed"
        raise UserError(what, where=where, remedy="keep the adapter beside its base (adapter.merge: false) and report the model's family")
    return apart


@torch.no_grad()
def probe_logits(model: Any) -> Tensor:
    """Logits (4, 24, V) in fp32 of sequences that spread over the whole vocabulary, its last id included."""
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = (vocab - 1 - torch.arange(96) * max(1, vocab // 96)).clamp_min(0).view(4, 24)
    return model(input_ids=ids, use_cache=False).logits.float()
