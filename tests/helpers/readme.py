"""The blocks of the README: each command or statement, and the output printed below it."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.helpers.servers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


class Step(NamedTuple):
    language: str
    command: str
    output: str


STEPS = [
    Step(*found)
    for found in re.findall(
        r"^```(sh|sql)\n(.*?)^```$(?:\n\n```http\n(.*?)^```$)?", README, re.MULTILINE | re.DOTALL
    )
]
# Commands that need three rqlite nodes; test_cluster runs them.
CLUSTER_COMMANDS = [step.command for step in STEPS if "localhost:4001" in step.command]
