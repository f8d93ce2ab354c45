from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
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


# What is built and installed.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The standard wheel, built from this checkout."""
    into = tmp_path_factory.mktemp("wheel")
    if importlib.util.find_spec("hatchling"):
        build = ["hatchling", "build", "-t", "wheel", "-d", str(into)]
    else:  # asks the package index for hatchling
        build = ["pip", "wheel", ".", "--no-deps", "-c", "constraints.txt", "-w", str(into)]
    subprocess.run([sys.executable, "-m", *build], cwd=ROOT, check=True, capture_output=True, timeout=100)
    [file] = into.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def imported(code: str, cwd: Path) -> str:
    """Return what code prints in a fresh interpreter that stands outside the checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=kept, capture_output=True, text=True, check=True, timeout=60
    )
    return told.stdout.strip()


@pytest.mark.slow
def test_the_wheel_carries_everything_that_the_package_reads(wheel: zipfile.ZipFile) -> None:
    packs = ROOT / "policies"
    data = {f"cacheproxy/_policies/{file.relative_to(packs).as_posix()}" for file in packs.rglob("*") if file.is_file()}
    assert data >= {
        f"cacheproxy/_policies/{pack}/{file}"
        for pack in ("balanced", "strict", "frugal", "compliance")
        for file in ("policy.toml", "probes.toml", "README.md")
    }
    code = {file.relative_to(ROOT).as_posix() for file in SOURCES}
    assert data | code | {"cacheproxy/demo_questions.toml", "cacheproxy/py.typed"} <= set(wheel.namelist())


@pytest.mark.slow
def test_the_wheel_gives_one_import_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cacheproxy"}


@pytest.mark.slow
def test_an_installed_package_finds_the_packs_it_brought(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from cacheproxy.policy.loader import find_pack, load_pack
for name in ("balanced", "strict", "frugal", "compliance"):
    print(load_pack(find_pack(name)).name, find_pack(name))
"""
    shelf = tmp_path / "site" / "cacheproxy" / "_policies"
    packs = ("balanced", "strict", "frugal", "compliance")
    assert imported(code, tmp_path).splitlines() == [f"{pack} {shelf / pack}" for pack in packs]


def test_an_editable_install_brings_no_copy_of_the_packs() -> None:
    files = importlib.metadata.files("cacheproxy")
    assert files
    assert [str(file) for file in files if "_policies" in str(file) or file.name == "policy.toml"] == []


@pytest.mark.parametrize("name", ["policies", "tests", "docs", "federated"])
def test_an_editable_install_gives_no_other_import_name(name: str, tmp_path: Path) -> None:
    code = f"""
from importlib.util import find_spec
spec = find_spec({name!r})
print(*((spec.submodule_search_locations or [spec.origin]) if spec else []), sep="\\n")
"""
    found = [Path(line) for line in imported(code, tmp_path).splitlines()]  # another package may own the name
    assert [path for path in found if path.is_relative_to(ROOT) and not path.is_relative_to(sys.prefix)] == []
