"""`cairn trace`: the lineage of an artifact as a tree. Reads records alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.cli.show import Json, StoreDir, open_store, out, print_json

if TYPE_CHECKING:
    from cairn.ledger.store import Artifact, Store


def command(
    ref: Annotated[str, typer.Argument(help="recipe/stage, an artifact's folder, or the start of a key.")],
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Show what an artifact was made from, down to the files from outside.

    \b
    Example:
        cairn trace pebble/chat
    """
    from cairn.pipeline.resolve import resolve_artifact

    place = open_store(store)
    tree = _lineage(resolve_artifact(ref, place), place)
    if json:
        print_json(tree)
    else:
        out().print(_draw(tree, set()))


def _lineage(artifact: Artifact, store: Store) -> dict[str, Any]:
    record = artifact.record
    inputs = []
    for label, source in record.inputs.items():
        found = store.get(source.key)
        if found is None:
            inputs.append({"name": label, "kind": None, "key": source.key, "digest": source.digest, "note": "no longer in the store"})
            continue
        branch = {**_lineage(found, store), "name": label}
        if found.record.digest != source.digest:
            branch["note"] = f"made anew since: digest {source.digest[:12]} was read"
        inputs.append(branch)
    files = [{"place": place, "path": file.path, "sha256": file.sha256} for place, file in record.files.items()]
    return {
        "name": record.name, "kind": record.kind, "key": record.key, "digest": record.digest, "seed": record.seed,
        "started": record.times.get("started"), "inputs": inputs, "files": files,
    }  # fmt: skip


def _draw(node: dict[str, Any], seen: set[str], tree: Any = None) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    line = Text.assemble((node["name"], "bold"), f" ({node['kind'] or 'unknown'})  key {node['key'][:12]}  digest {node['digest'][:12]}")
    if node.get("started"):
        line.append(f"  {node['started']}", style="dim")
    if node.get("note"):
        line.append(f"  {node['note']}", style="red")
    again = node["key"] in seen and (node.get("inputs") or node.get("files"))
    if again:
        line.append("  (shown above)", style="dim")
    branch = Tree(line) if tree is None else tree.add(line)
    if again:
        return branch
    seen.add(node["key"])
    for file in node.get("files", []):
        branch.add(Text(f"{file['path']}  sha256 {file['sha256'][:12]}", style="cyan"))
    for child in node.get("inputs", []):
        _draw(child, seen, branch)
    return branch
