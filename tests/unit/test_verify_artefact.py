"""A verifier on disk is whole and of the right encoder, or it is refused with a word on what to do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.verify import artefact
from cacheproxy.verify.artefact import CHEAP, CROSS, MANIFEST
from cacheproxy.verify.features import NAMES
from cacheproxy.verify.open import open_scorer
from cacheproxy.verify.scorer import PairScorer
from tests.support.artefacts import PLACES, tiny_base, write_verifier

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.verify.cross import Base

TO_DO = ("train", "install")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    write_verifier(tmp_path / "verifier", base)
    return tmp_path / "verifier"


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        artefact.load(folder)
    assert str(folder) in caught.value.message
    assert any(word in caught.value.message for word in TO_DO)
    return caught.value.message


def loaded_or_refused(folder: Path) -> artefact.Manifest | str:
    try:
        return artefact.load(folder)[0]
    except ConfigError as exc:
        return exc.message


def test_what_is_saved_is_what_is_loaded(folder: Path) -> None:
    manifest, trees, cross = artefact.load(folder)
    assert manifest == artefact.read_manifest(folder)
    again = folder.with_name("again")
    again.mkdir()
    saved = artefact.save(again, manifest, trees, cross)
    assert saved == manifest
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in (MANIFEST, CROSS, CHEAP))


@pytest.mark.parametrize("name", [CHEAP, CROSS])
def test_a_flipped_byte_of_the_weights_is_refused_wherever_it_is(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for at in sorted({*range(0, len(whole), max(len(whole) // 60, 1)), 0, 7, 8, len(whole) - 1}):
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert name in refused(folder)


def test_a_flipped_bit_of_the_manifest_is_refused_or_changes_nothing(folder: Path) -> None:
    manifest, whole = artefact.read_manifest(folder), (folder / MANIFEST).read_bytes()
    for at in range(0, len(whole), 5):
        (folder / MANIFEST).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        told = loaded_or_refused(folder)
        assert told == manifest or (isinstance(told, str) and any(word in told for word in TO_DO))
        assert isinstance(told, str) or whole[at : at + 1].isspace()


@pytest.mark.parametrize("name", [MANIFEST, CHEAP, CROSS])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize("name", [MANIFEST, CHEAP, CROSS])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04N.", b"\xff" * 64, b"\x00" * 64])
def test_a_file_of_something_else_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert name in refused(folder)


def test_no_directory_or_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    assert "manifest.json" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file")


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"features": 0},
        {"feature_names": (*NAMES[1:], NAMES[0])},
        {"feature_names": NAMES[:-1]},
    ],
)
def test_an_artefact_of_another_version_is_refused(base: Base, tmp_path: Path, changes: dict[str, Any]) -> None:
    write_verifier(tmp_path, base, **changes)
    assert "another version" in refused(tmp_path)


@pytest.mark.parametrize("field", ["heads", "layers", "dim"])
@pytest.mark.parametrize("value", [0, -1, 3, 1000])
def test_sizes_that_do_not_fit_the_weights_are_refused(base: Base, tmp_path: Path, field: str, value: int) -> None:
    write_verifier(tmp_path, base, **{field: value})
    with pytest.raises(ConfigError):
        open_scorer(str(tmp_path), base)


def test_files_listed_otherwise_are_refused(folder: Path) -> None:
    manifest = artefact.read_manifest(folder)
    for files in ({}, {CROSS: manifest.files[CROSS]}, {**manifest.files, "../more.safetensors": "0" * 64}):
        told = msgspec.structs.replace(manifest, files=files, sha256="")
        (folder / MANIFEST).write_bytes(msgspec.json.encode(told))
        assert "lists other files" in refused(folder)


def test_a_verifier_of_another_encoder_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    other = tiny_base(tmp_path / "other", seed=2)
    with pytest.raises(ConfigError, match=r"made for tiny and no other encoder; train one"):
        PairScorer(folder, other)


def test_a_base_of_too_few_places_is_refused(tmp_path: Path) -> None:
    small = tiny_base(tmp_path / "small", places=PLACES // 2)
    write_verifier(tmp_path / "verifier", small)
    with pytest.raises(ConfigError, match="has no places for"):
        PairScorer(tmp_path / "verifier", small)


def test_the_fingerprint_tells_what_probabilities_depend_on_and_nothing_else(base: Base, tmp_path: Path) -> None:
    first = write_verifier(tmp_path / "a", base)
    told = write_verifier(tmp_path / "b", base, description="another", seed=5)
    weighed = write_verifier(
        tmp_path / "c", base, weights=artefact.Weights(cheap=(0.0, 1.0), both=(0.0, 1.0, 0.2), hopeless=-9.0)
    )
    assert first.fingerprint == told.fingerprint != weighed.fingerprint
    assert first.fingerprint.startswith("test/1-")
    sure = artefact.Weights(cheap=(0.0, 1.0), both=(0.0, 1.0, 0.1), hopeless=-3.5, sure=3.0)
    assert write_verifier(tmp_path / "d", base, weights=sure).fingerprint != first.fingerprint
    assert b"sure" not in (tmp_path / "a" / MANIFEST).read_bytes()  # so that older ones stay what they are


def test_nothing_is_ever_unpickled(folder: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", forbidden)
    monkeypatch.setattr(np, "load", forbidden)
    scorer = PairScorer(folder, base)
    assert 0.0 <= scorer.verify("a", [("b", 0.5)])[0].probability <= 1.0
    for name in (CHEAP, CROSS):
        head = (folder / name).read_bytes()[:9]
        assert head[8:] == b"{"
        assert int.from_bytes(head[:8], "little") < 1 << 16


def test_off_opens_none_and_a_directory_given_must_hold_one(folder: Path, base: Base, tmp_path: Path) -> None:
    assert open_scorer("off", base) is None
    opened = open_scorer(str(folder), base)
    assert opened is not None
    assert opened.fingerprint == artefact.read_manifest(folder).fingerprint
    with pytest.raises(ConfigError, match="verifier train"):
        open_scorer(str(tmp_path), base)


def test_a_copy_elsewhere_is_the_same_verifier(folder: Path, base: Base, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    one, other = PairScorer(folder, base), PairScorer(copy, base)
    assert one.fingerprint == other.fingerprint
    pairs = [("how do i pay", "how can i pay", 0.9), ("open account", "close account", 0.4)]
    assert one.score(pairs) == other.score(pairs)
