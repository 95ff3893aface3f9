"""The skills of the built-in corpus, one module each. A new skill is a module with `SKILLS` and its name in `MODULES`.

The modules are imported by name, not discovered, so that the digest of this code covers every one of them.
"""

from __future__ import annotations

from cairn.data.pebble.skill import Skill
from cairn.data.pebble.skills import (
    arithmetic,
    chat,
    copying,
    facts,
    functions,
    identity,
    japanese,
    json_objects,
    korean,
    lists,
    manners,
    orders,
    refusal,
    steering,
    stories,
)

MODULES = (
    functions, arithmetic, facts, identity, json_objects, lists, korean, japanese, refusal, chat, orders, copying, steering, manners,
    stories,
)  # fmt: skip

ALL: dict[str, Skill] = {skill.name: skill for module in MODULES for skill in module.SKILLS}
