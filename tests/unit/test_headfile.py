"""A head on disk is refused when anything about it disagrees."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from cacheproxy.embed.headfile import MANIFEST, WEIGHTS, pack, parsed, read, refuse_base, told, unpack, write
from cacheproxy.embed.headshelf import MOST_KEPT, HeadShelf, State
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
    manifest, _ = pack(HEAD, manifest_of())
    with pytest.raises(ConfigError, match="was made for the encoder base/1, the one in use is base/2"):
        refuse_base(manifest, "base/2", "it")


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
    state = State()
    for at in range(40):
        state = msgspec.structs.replace(state, adopting=f"e{at}").adopted((0, 0))
    before = state.before
    assert (state.serving, before[0], before[-1], len(before)) == ("e39", "", "e38", MOST_KEPT)


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"before": 1}'])
def test_a_damaged_state_is_kept_aside_and_the_encoder_serves_alone(tmp_path: Path, content: bytes) -> None:
    shelf = HeadShelf(tmp_path, "base/1", 8)
    manifest, weights = pack(HEAD, manifest_of())
    for at in range(MOST_KEPT + 2):
        more = msgspec.structs.replace(manifest, round=at, thresholds={"*": at / 100})
        shelf.put(shelf.checked(more, weights, "it"), weights)
    (tmp_path / "state.json").write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        assert shelf.state() == State()
    [aside] = tmp_path.glob("state.json.corrupt-*")
    assert aside.read_bytes() == content
    [line] = logs
    assert (line["event"], line["log_level"], line["moved_to"]) == ("head_state_set_aside", "error", str(aside))
    assert shelf.state() == State()
    shelf.prune()  # nobody knows which ones served: none goes
    assert len(shelf.epochs()) == MOST_KEPT + 2


def test_a_state_that_cannot_be_read_stops_a_start_and_stays(tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()
    with pytest.raises(ConfigError, match=r"state\.json: cannot be read .*; see the disk"):
        HeadShelf(tmp_path, "base/1", 8).state()
    assert (tmp_path / "state.json").is_dir()


def test_a_head_that_came_just_now_is_never_dropped(tmp_path: Path) -> None:
    shelf = HeadShelf(tmp_path, "base/1", 8)
    manifest, weights = pack(HEAD, manifest_of())
    epochs = []
    for at in range(MOST_KEPT + 3):
        made = shelf.checked(msgspec.structs.replace(manifest, thresholds={"*": at / 100}), weights, "it")
        shelf.put(made, weights)
        epochs.append(made.epoch)
    for at, epoch in enumerate(epochs):
        os.utime(tmp_path / epoch[-32:], (at, at))
    shelf.note(State(serving=epochs[0], before=("", *epochs[1 : MOST_KEPT + 1])))
    shelf.prune()
    assert set(shelf.epochs()) == {*epochs[: MOST_KEPT + 1], epochs[-1]}
