"""The Dockerfile as instructions, stage by stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.support.markdown import ROOT

ARGUMENT = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its name, what it starts from, and its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        """Return what follows a keyword, each time."""
        return [rest for told, rest in self.instructions if told == keyword]

    def one(self, keyword: str) -> str:
        """Return what follows a keyword that is there once."""
        [found] = self.all(keyword)
        return found

    @property
    def environment(self) -> dict[str, str]:
        """What `ENV` sets."""
        return dict(pair for rest in self.all("ENV") for pair in re.findall(r"(\w+)=(\S+)", rest))

    @property
    def arguments(self) -> dict[str, str]:
        """The build arguments with their defaults."""
        return dict(rest.partition("=")[::2] for rest in self.all("ARG"))


def stages() -> list[Stage]:
    """Return the stages of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found: list[Stage] = []
    for line in plain.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(name, base))
        elif keyword and found:
            found[-1].instructions.append((keyword, " ".join(rest.split())))
    return found
