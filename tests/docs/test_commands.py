"""Every command line in the documents is one that the command line understands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import pytest

from cacheproxy.cli import main
from tests.support.markdown import ROOT, documents, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = re.compile(r"(?:\$ )?(?:\.venv/bin/|python -m )?cacheproxy(?P<rest>(?: .*)?)")
OPTION = re.compile(r"--[a-z][a-z-]*")
OF_OTHER_PROGRAMS = {
    "--scale",
    "--profile",
    "--rm",
    "--force-recreate",
    "--data",
    "--out",
    "--entries",
    "--seconds",
    "--smoke",
    "--parts",
    "--before",
    "--no-deps",
    "--strict",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A command line and the document it stands in."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def documented_lines() -> Iterator[Line]:
    """Yield every `cacheproxy ...` in code, once a document."""
    for document in documents("*.md", "docs/**/*.md", "policies/*/README.md"):
        code = [*document.spans, *(line for block in document.blocks() for line in block.splitlines())]
        written = {found["rest"] for line in code if (found := COMMAND.fullmatch(line.strip()))}
        for rest in sorted(written):
            yield Line(document.name, tuple(shlex.split(rest, comments=True)))


LINES = list(documented_lines())


def command_of(words: tuple[str, ...]) -> tuple[click.Command, list[str]]:
    """Return the command that the first words name, and the words for it."""
    command: click.Command = main
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"no command {rest[0]!r}"
        command, rest = found, rest[1:]
    return command, rest


def commands(group: click.Group) -> Iterator[click.Command]:
    """Yield a group and every command under it."""
    yield group
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


@pytest.mark.parametrize("line", LINES, ids=str)
def test_every_command_line_parses(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, rest = command_of(line.words)
    if not rest:
        return  # a mention of the command
    for before, word in zip(["", *rest], rest, strict=False):
        if re.fullmatch(r"[\w.-]+", word) and not word.startswith("-") and before != "--out":
            (tmp_path / word).touch()  # stands for the reader's own file
    monkeypatch.chdir(tmp_path)
    command.make_context(" ".join(line.words), rest)


@pytest.mark.parametrize("name", ["README.md", "policies/balanced/README.md"])
def test_the_documents_that_show_commands_are_read(name: str) -> None:
    assert [line for line in LINES if line.where == name]


def test_every_option_that_is_named_belongs_to_a_command() -> None:
    known = {
        option
        for command in commands(main)
        for param in command.params
        for option in (*param.opts, *param.secondary_opts)
    } | {"--help"}
    found = documents("*.md", "docs/**/*.md", "policies/*/README.md")
    named = {option for document in found for span in document.spans for option in OPTION.findall(span)}
    assert named - known - OF_OTHER_PROGRAMS == set()


def test_every_command_is_in_the_readme() -> None:
    text = read("README.md").text
    runnable = [command.name for command in commands(main) if not isinstance(command, click.Group)]
    assert {name for name in runnable if not re.search(rf"\b{name}\b", text)} == set()


def test_the_makefile_runs_commands_that_exist() -> None:
    recipes = re.findall(r"\$\(BIN\)/cacheproxy (.+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert recipes
    for recipe in recipes:
        plain = re.sub(r"\$\(if [^,]*,(.*)\)", r"\1", recipe)
        command, rest = command_of(tuple(shlex.split(re.sub(r"\$\(\w+\)", "value", plain))))
        command.make_context("cacheproxy", rest)
