from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "cacheproxy").rglob("*.py"))
SHIPPED = [
    path
    for folder in ("cacheproxy", "policies", "tests", "docs", ".ci")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".toml", ".md", ".sh", ""} and path.is_file()
] + [path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in {".toml", ".md", ".txt", ".yml", ""}]

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|Users|home/(?!someone))(?:/|\b)")
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_NAMES = {"eval", "exec", "literal_eval", "__import__"}


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def canonical_name(requirement: str) -> str:
    """Return the name a requirement is about, as PEP 503 compares it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def constraints() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonical_name(line): line.partition("==")[2] for line in lines if line}


def test_torch_is_pinned_so_that_no_package_can_replace_it() -> None:
    assert constraints()["torch"] == "2.13.0"


def test_every_constraint_is_one_exact_version() -> None:
    loose = {
        name: version for name, version in constraints().items() if not re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version)
    }
    assert loose == {}


def test_every_direct_dependency_is_constrained() -> None:
    told = project()
    extras = [requirement for group in told["optional-dependencies"].values() for requirement in group]
    direct = {canonical_name(requirement) for requirement in [*told["dependencies"], *extras]} - {told["name"]}
    assert direct - constraints().keys() == set()


def test_what_builds_the_package_is_constrained_too() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = tomllib.load(file)["build-system"]["requires"]
    assert {canonical_name(requirement) for requirement in needed} <= constraints().keys()


def test_the_files_that_the_metadata_names_exist() -> None:
    told = project()
    assert all((ROOT / name).is_file() for name in [told["readme"], *told["license-files"]])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_in_a_file_is_ever_run_as_code(source: Path) -> None:
    assert list(_unsafe(ast.parse(source.read_text(encoding="utf-8")))) == []


def _unsafe(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.partition(".")[0] in UNSAFE_MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in UNSAFE_MODULES:
                yield module
            case ast.Name(id=name) | ast.alias(name=name) if name in UNSAFE_NAMES:
                yield name
            case ast.Attribute(attr="literal_eval"):
                yield "literal_eval"
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                yield "torch.load"
            case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=ast.Constant(value=True)):
                yield str(node.arg)


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    told = {
        path.relative_to(ROOT).as_posix(): found[0]
        for path in SHIPPED
        if path != Path(__file__) and (found := MACHINE_PATH.search(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert told == {}
