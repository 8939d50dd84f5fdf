"""The fenced blocks of README.md and OPERATING.md: commands, and the output printed below each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.helpers.servers import CANONICAL, ROOT

DOCUMENTS = [
    path for path in (ROOT / "README.md", ROOT / "bookings" / "OPERATING.md") if path.exists()
]
# Languages of files for other programs, which test_proxy.py runs and verifies.
CONFIGURATIONS = ("nginx", "ini")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OUTPUT_LANGUAGES = ("http", "json", "text", "sql")


class Step(NamedTuple):
    """A block, and the block directly below it if that is its output."""

    language: str
    command: str
    output_language: str = ""
    output: str = ""


def steps_of(document: Path) -> list[Step]:
    """Return the blocks of a document in order."""
    text = document.read_text(encoding="utf-8")
    steps: list[Step] = []
    end = 0
    for block in _BLOCK.finditer(text):
        language, content = block.groups()
        last = steps[-1] if steps else Step("", "")
        is_adjacent = not last.output and not text[end : block.start()].strip()
        # SQL below SQL is another statement; SQL below a shell command is its output.
        is_output = language in _OUTPUT_LANGUAGES and (language, last.language) != ("sql", "sql")
        if last.language and is_adjacent and is_output:
            steps[-1] = last._replace(output_language=language, output=content)
        else:
            steps.append(Step(language, content))
        end = block.end()
    return steps


def configuration(language: str) -> str:
    """Return the only block of the documents in this language."""
    (text,) = (s.command for path in DOCUMENTS for s in steps_of(path) if s.language == language)
    return text


def needs_cluster(step: Step) -> bool:
    """Return whether a command needs rqlite nodes."""
    return "localhost:4001" in step.command


def normalized(text: str) -> str:
    """Remove times, request ids, folders and the numbers of concurrent requests."""
    text = re.sub(rf'("created_at": ?)"{CANONICAL.pattern}"', r"\1", text.replace("\r\n", "\n"))
    # The last columns of a table: created_at, and cancelled_at if there is one.
    times = rf"{CANONICAL.pattern}(  {CANONICAL.pattern})?$"
    text = re.sub(times, "", text, flags=re.MULTILINE)
    text = re.sub(r"^(Date:) .* GMT$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^(X-Request-ID:) [0-9a-f]{16}$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^(Bookings \S+ on .*, database )\S*/", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^(\d+ \w+ restored to) (?:http:\S*|\S*/)", r"\1 ", text, flags=re.MULTILINE)
    return re.sub(r"6e1d3b7f-5a2c-4c8e-b90d-4f5e6d7c8b9[1-5]\b", "race", text)


# The blocks that start three nodes and use them; test_cluster runs these.
CLUSTER_STEPS = [
    step for document in DOCUMENTS for step in steps_of(document) if needs_cluster(step)
]
