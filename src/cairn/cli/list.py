"""`cairn list`: recipes, formats, kinds of stages, and what the store holds. Runs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cairn.cli.show import Json, StoreDir, open_store, out, print_json

if TYPE_CHECKING:
    from cairn.ledger.store import Store


def command(store: StoreDir = None, json: Json = False) -> None:
    r"""Show the built-in recipes, the chat formats, the kinds of stages, and what the store holds.

    \b
    Example:
        cairn list --store ./cairn-store
    """
    from rich.table import Table
    from rich.text import Text

    from cairn.chat.format import format_names
    from cairn.config import parse_yaml
    from cairn.ledger.store import show_bytes
    from cairn.pipeline.recipe import built_in
    from cairn.pipeline.stage import kinds

    place = open_store(store)
    files = {name: parse_yaml(file.read_text(encoding="utf-8"), where=str(file)) for name, file in built_in().items()}
    recipes = {name: str(content.get("description", "")) for name, content in files.items()}
    artifacts = _artifacts(place)
    if json:
        print_json({"recipes": recipes, "formats": format_names(), "kinds": kinds(), "store": str(place.root), "artifacts": artifacts})
        return
    console = out()
    console.print("recipes (cairn run NAME)", style="bold")
    for name, line in sorted(recipes.items()):
        console.print(f"  {name:<12} {line}", markup=False)
    console.print("chat formats", style="bold")
    console.print("  " + " ".join(format_names()))
    console.print("kinds of stages", style="bold")
    console.print("  " + " ".join(kinds()))
    if not artifacts:
        console.print(f"The store is empty: {place.root}", markup=False, soft_wrap=True)
        return
    table = Table(title=f"artifacts in {place.root}", title_justify="left")
    for head in ("name", "kind", "key", "digest", "size", "finished"):
        table.add_column(head, justify="right" if head == "size" else "left")
    for one in artifacts:
        if one["damaged"]:
            table.add_row("", "", one["key"][:12], Text("damaged: " + one["damaged"], style="red"), "", "")
            continue
        names = ", ".join(one["names"]) or "(older)"
        table.add_row(names, one["kind"], one["key"][:12], one["digest"][:12], show_bytes(one["bytes"]), one["finished"])
    console.print(table)


def _artifacts(store: Store) -> list[dict[str, Any]]:
    """What the store holds, oldest first; a damaged record is told and stops nothing."""
    from cairn.errors import UserError
    from cairn.ledger.store import Artifact

    names: dict[str, list[str]] = {}
    for recipe, stages in store.named().items():
        for stage, key in stages.items():
            names.setdefault(key, []).append(f"{recipe}/{stage}")
    found = []
    for key in store.keys():  # noqa: SIM118 - a store is no mapping
        one: dict[str, Any] = {"key": key, "names": names.get(key, []), "kind": "", "digest": "", "bytes": 0, "finished": "", "damaged": ""}
        try:
            record = Artifact(store.artifacts / key).record
            size = sum(o.bytes for o in record.outputs.values())
            one.update(kind=record.kind, digest=record.digest, bytes=size, finished=str(record.times.get("finished", "")))
        except UserError as error:
            one["damaged"] = error.what
        found.append(one)
    return sorted(found, key=lambda one: (one["finished"], one["key"]))
