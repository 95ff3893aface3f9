"""`cairn trace`: the lineage of an artifact as a tree. Reads records alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cairn.cli.show import Json, StoreDir, open_store, out, print_json


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
    from cairn.report.lineage import tree_value

    place = open_store(store)
    tree = tree_value(resolve_artifact(ref, place), place)
    if json:
        print_json(tree)
    else:
        out().print(_draw(tree, set()))


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
