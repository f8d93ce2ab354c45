"""A change of an encoder's layers: what it is, what it makes of the weights, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from cacheproxy.embed.export import export
from cacheproxy.embed.headfile import pack, read, told, unpack, write
from cacheproxy.embed.headshelf import HeadShelf
from cacheproxy.embed.layers import SCALE, Form, Layers
from cacheproxy.embed.source import WEIGHTS
from cacheproxy.embed.tuned import (
    changed,
    changed_weights,
    fingerprints,
    form_of,
    open_tuned,
    prune_exports,
    refuse_form,
)
from cacheproxy.errors import ConfigError
from tests.support.heads import manifest_of, rotation
from tests.support.tiny import tiny_change, tiny_encoder, tiny_form, tiny_settings, tiny_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy.embed.headfile import Manifest
    from cacheproxy.embed.layers import Mode
    from cacheproxy.embed.source import Source

MODES: list[Mode] = ["top-layers", "lora"]


def test_the_default_encoders_changes_are_as_large_as_is_said() -> None:
    mini = {"dim": 384, "inner": 1536, "depth": 6}
    assert Form(mode="top-layers", layers=2, **mini).size * 4 == 14_195_712
    assert Form(mode="lora", layers=6, rank=8, **mini).size * 4 == 294_912


@pytest.mark.parametrize("mode", MODES)
def test_what_training_starts_from_changes_nothing(mode: Mode) -> None:
    form, source = tiny_form(mode), tiny_source()
    before = load_file(source.directory / WEIGHTS)
    after = changed_weights(source, Layers(form=form, flat=form.start(3)))
    assert all(np.array_equal(after[name], weight) for name, weight in before.items())
    assert np.array_equal(form.start(3), form.start(3))


def test_whole_layers_are_added_and_adapters_are_multiplied_first() -> None:
    source = tiny_source()
    before = load_file(source.directory / WEIGHTS)
    whole = tiny_change("top-layers")
    after = changed_weights(source, whole)
    name = "encoder.layer.1.output.dense.weight"
    assert np.allclose(after[name] - before[name], whole.tensors[name], atol=1e-6)
    assert np.array_equal(after["encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"])
    low = tiny_change("lora")
    after, stem = changed_weights(source, low), "encoder.layer.0.attention.self.value."
    product = SCALE * low.tensors[f"{stem}lora_B"] @ low.tensors[f"{stem}lora_A"]
    assert np.allclose(after[f"{stem}weight"] - before[f"{stem}weight"], product, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_flat_vector_comes_back_from_its_file_as_it_was(mode: Mode, tmp_path: Path) -> None:
    given, key = tiny_change(mode), Ed25519PrivateKey.generate()
    made = write(tmp_path, given, manifest_of(dim_in=32, dim=32), key)
    back = read(tmp_path, [key.public_key().public_bytes_raw().hex()])
    assert back.layers is not None
    assert np.array_equal(back.layers.flat, given.flat)
    assert (back.epoch, back.manifest.mode, back.projection) == (made.epoch, mode, None)
    assert back.epoch != write(tmp_path, tiny_change(mode, seed=1), manifest_of()).epoch


def test_a_heads_signature_is_of_what_it_always_was() -> None:
    manifest, _ = pack(rotation(4), manifest_of())
    assert b"changed" not in manifest.signed
    assert manifest.mode == "head"


def _told(**fields: Any) -> dict[str, Any]:
    manifest, _ = pack(tiny_change(), manifest_of())
    tree = msgspec.to_builtins(manifest)
    return {**tree, "changed": {**tree["changed"], **fields}}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"rank": 5}, "other tensors"),
        ({"mode": "top-layers", "rank": 0}, "other tensors"),
        ({"layers": 3}, "layers must be 1 to 2"),
        ({"tensors": {}}, "other tensors"),
        ({"mode": "all"}, "its manifest is none"),
        ({"inner": 65}, None),
    ],
)
def test_a_manifest_that_disagrees_with_its_weights_is_refused(fields: dict[str, Any], complaint: str | None) -> None:
    _, weights = pack(tiny_change(), manifest_of())
    if complaint is None:  # adapters do not depend on it; the encoder in use does
        made = unpack(told(_told(**fields), "it"), weights, "it")
        assert made.layers is not None
        with pytest.raises(ConfigError, match="train them on the encoder in use"):
            refuse_form(made.layers.form, tiny_source())
        return
    with pytest.raises(ConfigError, match=complaint):
        unpack(told(_told(**fields), "it"), weights, "it")


def test_weights_of_other_names_shapes_or_values_are_refused() -> None:
    for change in (
        lambda tensors: tensors | {"more": np.zeros(2, dtype=np.float32)},
        lambda tensors: {name: tensor.astype(np.float64) for name, tensor in tensors.items()},
        lambda tensors: {name: tensor * np.float32("nan") for name, tensor in tensors.items()},
        lambda tensors: {name: tensor[:1] for name, tensor in tensors.items()},
    ):
        weights = save({name: np.ascontiguousarray(one) for name, one in change(tiny_change().tensors).items()})
        manifest, _ = pack(tiny_change(), manifest_of())
        manifest = msgspec.structs.replace(manifest, sha256=hashlib.sha256(weights).hexdigest())
        with pytest.raises(ConfigError, match="set of adapters"):
            unpack(manifest, weights, "it")


def _wide(dim: int) -> tuple[Manifest, bytes]:
    """Return adapters of an encoder of that width: little on the wire, whatever is claimed of it."""
    form = Form(mode="lora", dim=dim, inner=64, depth=1, layers=1, rank=1)
    return pack(Layers(form=form, flat=form.start(0)), manifest_of("wide/onnx-fp32/1-0"))


def _most_bytes(work: Callable[[], object], says: str) -> int:
    """Return how much memory refusing took at once."""
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=says):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_width_that_is_claimed_is_made_room_for_before_it_is_compared(tmp_path: Path) -> None:
    manifest, weights = _wide(16384)
    assert len(weights) < 1 << 20
    assert _most_bytes(lambda: unpack(manifest, weights, "it"), "more than any head may have") < 8 << 20
    manifest, weights = _wide(2048)  # as wide as a head may be, and not the encoder's
    for shelf, says in (
        (HeadShelf(tmp_path, "wide/onnx-fp32/1-0", 384), "takes vectors of 2048 components"),
        (HeadShelf(tmp_path, "base/onnx-fp32/1-0", 2048), "was made for the encoder wide"),
    ):
        refused = _most_bytes(partial(shelf.checked, manifest, weights, "it"), says)
        assert refused < 1 << 20


def test_layers_of_another_precision_than_fp32_are_refused_by_name(tmp_path: Path) -> None:
    for variant in ("onnx-int8", "torch-fp32", "torch-fp16"):
        base = f"bert-32/{variant}/1-0"
        manifest, weights = pack(tiny_change(), manifest_of(base))
        with pytest.raises(ConfigError, match=rf"it: changed layers .* the encoder is {base}; set encoder\.precision"):
            HeadShelf(tmp_path, base, 32).checked(manifest, weights, "it")
        head, weights = pack(rotation(32), manifest_of(base))
        assert HeadShelf(tmp_path, base, 32).checked(head, weights, "it").layers is None
    manifest, weights = pack(tiny_change(), manifest_of("bert-32/onnx-fp32/1-0"))
    made = HeadShelf(tmp_path, "bert-32/onnx-fp32/1-0", 32).checked(manifest, weights, "it")
    int8 = msgspec.structs.replace(tiny_settings(), precision="int8")
    with pytest.raises(ConfigError, match=r"set encoder\.precision to 'fp32'"):
        open_tuned(int8, tmp_path, made)


def test_exports_that_nobody_wants_are_removed_and_the_encoders_own_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.embed.tuned.export_in_child", export)  # in this process, where torch is there
    base = tiny_encoder().fingerprint
    made = [unpack(*pack(tiny_change("lora", seed), manifest_of(base)), "it") for seed in (0, 1)]
    for one in made:
        assert open_tuned(tiny_settings(), tmp_path, one).fingerprint == one.epoch
    folder = tmp_path / "encoders"
    own, killed = folder / base.replace("/", "_"), folder / ".bert-32+lora_onnx-fp32_1-0.killed"
    for more in (own, killed):
        more.mkdir()
    assert len([one for one in folder.iterdir() if one.is_dir()]) == 4
    prune_exports(tiny_settings(), tmp_path, made[1:])
    left = {one for one in folder.iterdir() if one.is_dir()}
    assert own in left
    assert len(left) == 2
    told = left - {own}
    opened = open_tuned(tiny_settings(), tmp_path, made[1])
    assert {one for one in folder.iterdir() if one.is_dir()} == left  # it was the other one that went
    assert opened.fingerprint == made[1].epoch
    prune_exports(tiny_settings(), tmp_path, ())
    assert not any(one.exists() for one in told)
    assert own.is_dir()


def test_what_is_made_for_an_export_lies_where_it_is_removed_with_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def killed(source: Source, _: str, out: Path) -> None:
        for one in (source.directory, out):
            shutil.copytree(one, one.with_name(f"{one.name}.left"))
            seen.append(one.with_name(f"{one.name}.left"))
        raise ConfigError("killed")

    monkeypatch.setattr("cacheproxy.embed.tuned.export_in_child", killed)
    one = unpack(*pack(tiny_change(), manifest_of(tiny_encoder().fingerprint)), "it")
    with pytest.raises(ConfigError, match="killed"):
        open_tuned(tiny_settings(), tmp_path, one)
    assert [left.parent for left in seen] == [tmp_path / "encoders"] * 2
    prune_exports(tiny_settings(), tmp_path, [one])
    assert not any(left.exists() for left in seen)


def test_weights_that_there_is_no_room_for_are_told_of_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("cacheproxy.embed.tuned.save_file", full)
    one = unpack(*pack(tiny_change(), manifest_of(tiny_encoder().fingerprint)), "it")
    with pytest.raises(ConfigError, match="No space left"):
        open_tuned(tiny_settings(), tmp_path, one)


def test_a_changed_model_is_a_model_directory_of_its_own(tmp_path: Path) -> None:
    with changed(tiny_source(), tiny_change(), tmp_path / "out") as made:
        assert form_of(made) == form_of(tiny_source())
        assert made.weights_sha256 != tiny_source().weights_sha256
        assert fingerprints(made).isdisjoint(fingerprints(tiny_source()))
        folder = made.directory
    assert not folder.exists()
