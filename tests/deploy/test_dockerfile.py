"""The Dockerfile builds what the install script installs, and runs the program as it is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cacheproxy.cli import main
from cacheproxy.configure import load
from cacheproxy.settings import Settings
from tests.support.compose import read
from tests.support.dockerfile import ARGUMENT, stages
from tests.support.markdown import ROOT

BUILDER, RUNTIME = stages()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HADOLINT = Path(sys.executable).parent / "hadolint"


def sources() -> list[str]:
    """Return what the builder copies from the checkout."""
    return [word for rest in BUILDER.all("COPY") for word in rest.split()[:-1]]


def reaches_the_engine(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last pattern that matches it, or a folder of it, decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    folders = [path, *(parent.as_posix() for parent in Path(path).parents if parent.name)]
    sent = True
    for line in lines:
        pattern = line.removeprefix("!").removeprefix("**/")
        if line and not line.startswith("#") and any(_matches(folder, pattern, line) for folder in folders):
            sent = line.startswith("!")
    return sent


def _matches(folder: str, pattern: str, line: str) -> bool:
    deep = "**/" in line
    return (
        fnmatch(Path(folder).name, pattern)
        if deep
        else ("/" in pattern and fnmatch(folder, pattern))
        or ("/" not in pattern and "/" not in folder and fnmatch(folder, pattern))
    )


def test_the_linter_finds_nothing() -> None:
    told = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stdout) == (0, "")


def test_the_builder_runs_the_pip_commands_of_the_install_script() -> None:
    script = (ROOT / ".ci/install").read_text(encoding="utf-8")
    installed = re.findall(r'^"\$venv/bin/pip" install (.+)$', script, re.MULTILINE)
    built = [found for rest in BUILDER.all("RUN") for found in re.findall(r"/bin/pip install (.+)", rest)]
    plain = [re.sub(r"""['"]|-e |\[[^]]*\]""", "", command) for command in installed]
    assert [re.sub(r"""['"]|\[[^]]*\]""", "", command) for command in built] == plain
    assert len(built) == 3


def test_constraints_hold_from_the_first_install_on() -> None:
    order = [f"{keyword} {rest}" for keyword, rest in BUILDER.instructions]
    copied = next(n for n, line in enumerate(order) if line.startswith("COPY constraints.txt"))
    first = next(n for n, line in enumerate(order) if "pip install" in line)
    assert copied < first
    assert BUILDER.environment["PIP_CONSTRAINT"] == f"{BUILDER.one('WORKDIR')}/constraints.txt"


def test_torch_comes_from_the_index_of_cpu_builds_unless_told_otherwise() -> None:
    assert BUILDER.arguments["TORCH_INDEX"].endswith("/whl/cpu")
    [torch] = [rest for rest in BUILDER.all("RUN") if rest.endswith("install -q torch")]
    assert "PIP_EXTRA_INDEX_URL=${TORCH_INDEX}" in torch


def test_the_extras_are_the_projects() -> None:
    assert set(BUILDER.arguments["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()


def test_every_argument_that_is_used_is_declared_before() -> None:
    for stage in (BUILDER, RUNTIME):
        known = {"PATH"}
        for keyword, rest in stage.instructions:
            assert set(ARGUMENT.findall(rest)) <= known, rest
            if keyword == "ARG":
                known.add(rest.partition("=")[0])


def test_what_is_copied_is_there_and_reaches_the_engine() -> None:
    assert {source for source in sources() if not (ROOT / source).exists()} == set()
    assert {source for source in sources() if not reaches_the_engine(source)} == set()


@pytest.mark.parametrize(
    "path",
    ["tests/conftest.py", "docs/operations.md", ".git/config", "secrets/admin_token", "cacheproxy.env", ".ci/install",
     ".venv/bin/python", "cacheproxy/__pycache__/cli.cpython-311.pyc", ".cacheproxy/install.key", "deploy/haproxy.cfg"],
)  # fmt: skip
def test_nothing_else_reaches_the_engine(path: str) -> None:
    assert not reaches_the_engine(path)


@pytest.mark.slow
def test_what_is_copied_is_enough_for_a_wheel_with_all_in_it(tmp_path: Path) -> None:
    for source in sources():
        target = tmp_path / "src" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=tmp_path / "src", check=True, capture_output=True, timeout=100)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert {
        "cacheproxy/cli.py",
        "cacheproxy/_policies/balanced/policy.toml",
        "cacheproxy/_federated/pyproject.toml",
    } <= names


@pytest.mark.parametrize("command", BUILDER.all("RUN"))
def test_commands_of_ours_in_the_build_parse(command: str) -> None:
    if found := re.search(r"bin/cacheproxy (.+)", command):
        name, *rest = shlex.split(found[1])
        main.commands[name].make_context(name, rest)
    assert ("cacheproxy check" in command) is bool(found)


def test_the_probes_of_a_shipped_pack_run_in_the_build() -> None:
    [check] = [rest for rest in BUILDER.all("RUN") if "cacheproxy check" in rest]
    cache = RUNTIME.environment["CACHEPROXY_ENCODER__CACHE_DIR"]
    assert check.startswith(f"CACHEPROXY_ENCODER__CACHE_DIR={cache} ")  # what it exports is what the proxy finds
    assert cache.startswith(RUNTIME.one("VOLUME") + "/")


def test_it_runs_as_somebody_without_rights_who_owns_the_data() -> None:
    user = RUNTIME.one("USER")
    assert re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", user)
    assert f"--chown={user} {RUNTIME.one('VOLUME')}" in " | ".join(RUNTIME.all("COPY"))
    assert all(service["user"] == user for service in read()["services"].values() if "cacheproxy:" in service["image"])


def test_its_variables_are_settings() -> None:
    ours = {name: value for name, value in RUNTIME.environment.items() if name.startswith("CACHEPROXY_")}
    settings = load(environ=ours)
    assert settings.data.dir == RUNTIME.one("VOLUME") == RUNTIME.one("WORKDIR")
    assert settings.server.host == "0.0.0.0"
    assert settings.log.format == "json"


def test_it_starts_what_the_command_line_knows_and_exposes_its_port() -> None:
    [program] = re.findall(r'"([^"]+)"', RUNTIME.one("ENTRYPOINT"))
    words = re.findall(r'"([^"]+)"', RUNTIME.one("CMD"))
    assert program in PROJECT["scripts"]
    main.commands[words[0]].make_context(words[0], words[1:])
    assert RUNTIME.one("EXPOSE") == str(Settings().server.port)
    assert RUNTIME.one("STOPSIGNAL") == "SIGTERM"


def test_its_health_check_is_the_programs_own_and_that_of_the_compose_file() -> None:
    options, _, command = RUNTIME.one("HEALTHCHECK").partition(" CMD ")
    words = re.findall(r'"([^"]+)"', command)
    main.commands[words[1]].make_context(words[1], words[2:])
    told = read()["services"]["proxy"]["healthcheck"]
    assert told["test"] == ["CMD", *words]
    for name, value in re.findall(r"--([a-z-]+)=(\S+)", options):
        assert str(told[name.replace("-", "_")]) == value


def test_the_version_is_the_projects() -> None:
    assert RUNTIME.arguments["VERSION"] == PROJECT["version"]
    [licence] = re.findall(r'licenses="([^"]+)"', RUNTIME.one("LABEL"))
    assert licence == PROJECT["license"]


def test_both_stages_have_the_same_python() -> None:
    assert BUILDER.base == RUNTIME.base == "python:${PYTHON}"
    told = re.search(r"^ARG PYTHON=(\d+\.\d+)-slim-bookworm$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert told is not None
    assert tuple(map(int, told[1].split("."))) >= (3, 11)
