"""A head on disk is refused when anything about it disagrees."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from cacheproxy.embed.headfile import MANIFEST, WEIGHTS, pack, parsed, read, refuse_base, told, unpack, write
from cacheproxy.embed.headshelf import HeadShelf, State
from cacheproxy.errors import ConfigError
from tests.support.heads import manifest_of, rotation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy.embed.headfile import Manifest

HEAD = rotation(8, k=4)
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw().hex()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = write(tmp_path / "head", HEAD, manifest_of(), KEY)
    found = read(tmp_path / "head", [PUBLIC])
    assert found.epoch == written.epoch
    assert found.manifest == written.manifest
    assert (found.manifest.dim, found.manifest.dim_in, found.manifest.key) == (4, 8, PUBLIC)
    assert np.array_equal(found.head.matrix, HEAD.matrix)
    assert found.epoch.startswith("base/1+")


def changed(manifest: Manifest, **fields: object) -> Manifest:
    return msgspec.structs.replace(manifest, **fields)


@pytest.mark.parametrize(
    ("tampered", "says"),
    [
        (lambda one: changed(one, thresholds={"*": 0.1}), "signature"),
        (lambda one: changed(one, base="base/2"), "signature"),
        (lambda one: changed(one, signature="00" * 64), "signature"),
        (lambda one: changed(one, signature="00"), "signature"),
        (lambda one: changed(one, key="", signature=""), "trusted key"),
        (lambda one: changed(one, schema=2), "another version"),
    ],
    ids=["threshold", "base", "signature", "short signature", "unsigned", "schema"],
)
def test_a_manifest_that_was_changed_is_refused(tampered: Callable[[Manifest], Manifest], says: str) -> None:
    manifest, weights = pack(HEAD, manifest_of(), KEY)
    assert unpack(manifest, weights, "it", [PUBLIC]).head.dim == 4
    with pytest.raises(ConfigError, match=says):
        unpack(tampered(manifest), weights, "it", [PUBLIC])


def test_a_signature_is_checked_even_where_nobody_asks_for_one() -> None:
    manifest, weights = pack(HEAD, manifest_of(), KEY)
    with pytest.raises(ConfigError, match="signature"):
        unpack(changed(manifest, round=9), weights, "it")


def test_a_key_that_is_not_trusted_is_refused() -> None:
    manifest, weights = pack(HEAD, manifest_of(), Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError, match="trusted key"):
        unpack(manifest, weights, "it", [PUBLIC])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dim": 5}, "another shape"),
        ({"dim_in": 9}, "another shape"),
        ({"thresholds": {"faq": 0.5}}, r"no threshold for `\*`"),
        ({"metrics": {"f05": float("inf")}}, "not finite"),
        ({"sha256": "00" * 32}, "sha256"),
    ],
)
def test_a_manifest_that_disagrees_with_its_weights_is_refused(fields: dict[str, object], says: str) -> None:
    manifest, weights = pack(HEAD, manifest_of())
    with pytest.raises(ConfigError, match=says):
        unpack(changed(manifest, **fields), weights, "it")


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x80\x04pickle",
        save({"other": HEAD.matrix}),
        save({"head": HEAD.matrix.astype(np.float64)}),
        save({"head": np.full((4, 8), np.nan, dtype=np.float32)}),
        save({"head": np.ones(8, dtype=np.float32)}),
    ],
    ids=["empty", "pickle", "other name", "float64", "nan", "vector"],
)
def test_weights_that_are_no_head_are_refused(weights: bytes) -> None:
    manifest = changed(pack(HEAD, manifest_of())[0], sha256=hashlib.sha256(weights).hexdigest())
    with pytest.raises(ConfigError, match="is no head"):
        unpack(manifest, weights, "it")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"schema": 1, "more": 2}'])
def test_what_is_no_manifest_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^here: is no manifest"):
        parsed(content, "here")


def test_a_threshold_beyond_any_cosine_is_refused() -> None:
    tree = msgspec.to_builtins(pack(HEAD, manifest_of())[0]) | {"thresholds": {"*": 1.5}}
    with pytest.raises(ConfigError, match=r"thresholds"):
        told(tree, "it")


def test_a_folder_without_a_head_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=MANIFEST):
        read(tmp_path)
    write(tmp_path, HEAD, manifest_of())
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=WEIGHTS):
        read(tmp_path)


# The shelf


def test_the_shelf_tells_what_it_was_given_and_what_serves(tmp_path: Path) -> None:
    shelf = HeadShelf(tmp_path / "heads", "base/1", 8)
    assert (shelf.epochs(), shelf.state()) == ([], State())
    artefact = shelf.checked(*pack(HEAD, manifest_of()), "it")
    shelf.put(artefact, pack(HEAD, manifest_of())[1])
    shelf.note(State(serving=artefact.epoch, before=("",)))
    again = HeadShelf(tmp_path / "heads", "base/1", 8)
    assert again.epochs() == [artefact.epoch]
    assert again.state() == State(serving=artefact.epoch, before=("",))
    assert np.array_equal(again.find(artefact.epoch).head.matrix, HEAD.matrix)


def test_a_head_of_another_encoder_is_refused() -> None:
    manifest, weights = pack(HEAD, manifest_of())
    with pytest.raises(ConfigError, match="was made for the encoder base/1, the one in use is base/2"):
        refuse_base(unpack(manifest, weights, "it"), "base/2", "it")


def test_a_head_that_was_damaged_on_the_shelf_is_not_served(tmp_path: Path) -> None:
    shelf = HeadShelf(tmp_path, "base/1", 8)
    manifest, weights = pack(HEAD, manifest_of())
    artefact = shelf.checked(manifest, weights, "it")
    shelf.put(artefact, weights)
    file = next(tmp_path.glob(f"*/{WEIGHTS}"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01"[-1:])
    with pytest.raises(ConfigError, match="sha256"):
        shelf.find(artefact.epoch)


def test_the_same_weights_with_other_thresholds_are_another_epoch() -> None:
    epochs = {
        unpack(*pack(HEAD, manifest_of(**fields)), "it").epoch
        for fields in ({}, {"thresholds": {"*": 0.5}}, {"verify_from": 0.4}, {"thresholds": {"*": 0.8, "faq": 0.7}})
    }
    assert len(epochs) == 4
    assert unpack(*pack(HEAD, manifest_of(round=9)), "it").epoch in epochs


def test_the_encoder_alone_can_always_be_gone_back_to(tmp_path: Path) -> None:
    shelf = HeadShelf(tmp_path, "base/1", 8)
    shelf.note(State(serving="z", before=("", *(f"e{at}" for at in range(40)))))
    before = shelf.state().before
    assert (before[0], before[-1], len(before)) == ("", "e39", 16)


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"before": 1}'])
def test_whatever_is_wrong_with_a_state_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(ConfigError, match="delete it to serve with the encoder alone"):
        HeadShelf(tmp_path, "base/1", 8).state()
