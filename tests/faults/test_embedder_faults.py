"""Rows 66 and 67 of the fault catalogue: an encoder that misbehaves, and model files that are wrong."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cacheproxy import settings
from cacheproxy.embed.artefact import GRAPH, MANIFEST, Manifest, ensure, read_manifest
from cacheproxy.embed.batch import Flaw
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.locate import locate
from cacheproxy.embed.open import open_encoder
from cacheproxy.errors import ConfigError, EmbedderUnavailable
from tests.support.encoders import ENCODERS, Fault, FaultyEncoder, real_encoder, safetensors_bytes, write_model
from tests.support.polling import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.embed.source import Source

CONFIG = settings.Encoder(threads=1, timeout_ms=20_000)
IMPATIENT = settings.Encoder(threads=1, timeout_ms=50)

FLAWS = {
    Fault.EXCEPTION: Flaw.EXCEPTION,
    Fault.OUT_OF_MEMORY: Flaw.EXCEPTION,
    Fault.NOT_AN_ARRAY: Flaw.EXCEPTION,
    Fault.WRONG_DIM: Flaw.SHAPE,
    Fault.WRONG_DTYPE: Flaw.SHAPE,
    Fault.TOO_FEW: Flaw.SHAPE,
    Fault.NAN: Flaw.NOT_FINITE,
    Fault.INFINITE: Flaw.NOT_FINITE,
    Fault.ZERO: Flaw.NORM,
}


@pytest.mark.parametrize("fault", FLAWS)
async def test_a_faulty_call_is_unavailable_counted_and_not_remembered(fault: Fault) -> None:
    encoder = FaultyEncoder({1: fault})
    async with MicroBatcher(encoder, CONFIG) as embedder:
        await embedder.embed("before")
        with pytest.raises(EmbedderUnavailable):
            await embedder.embed("the second call fails")
        assert embedder.stats.failures == {FLAWS[fault]: 1}
        assert (await embedder.embed("the second call fails")).vector.shape == (encoder.dim,)


async def test_a_failed_batch_fails_all_of_its_waiters_and_no_other() -> None:
    encoder = FaultyEncoder({1: Fault.EXCEPTION}, max_batch=8)
    encoder.gate.clear()
    async with MicroBatcher(encoder, CONFIG) as embedder:
        tasks = [asyncio.ensure_future(embedder.embed(f"text {number:02}")) for number in range(17)]
        await eventually(lambda: embedder.queued == 16, "two batches wait behind the first call")
        encoder.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [isinstance(result, EmbedderUnavailable) for result in results]
        assert failed == [False] + [True] * 8 + [False] * 8
        assert embedder.stats.failures == {Flaw.EXCEPTION: 8}


async def test_one_bad_vector_spares_its_batch() -> None:
    encoder = FaultyEncoder({1: Fault.NAN})
    encoder.gate.clear()
    async with MicroBatcher(encoder, CONFIG) as embedder:
        tasks = [asyncio.ensure_future(embedder.embed(f"text {number}")) for number in range(5)]
        await eventually(lambda: embedder.queued == 4, "one batch waits")
        encoder.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, EmbedderUnavailable) for result in results] == [False, True, False, False, False]


async def test_a_fault_is_logged_without_the_text() -> None:
    async with MicroBatcher(FaultyEncoder({0: Fault.EXCEPTION}), CONFIG) as embedder:
        with capture_logs() as logs, pytest.raises(EmbedderUnavailable) as caught:
            await embedder.embed("my secret diagnosis")
    assert [(log["event"], log["flaws"], log["error"]) for log in logs] == [
        ("encoding_failed", ["exception"], "RuntimeError")
    ]
    assert "diagnosis" not in f"{logs} {caught.value}"


async def test_an_encoder_that_keeps_failing_is_unhealthy_until_it_works() -> None:
    async with MicroBatcher(FaultyEncoder(dict.fromkeys(range(3), Fault.ZERO)), CONFIG) as embedder:
        for number in range(3):
            assert embedder.health() == ""
            with pytest.raises(EmbedderUnavailable):
                await embedder.embed(f"text {number}")
        assert embedder.health() == "the last 3 batches failed"
        await embedder.embed("works again")
        assert embedder.health() == ""


async def test_a_hanging_encoder_costs_one_deadline_then_refuses_at_once_and_recovers() -> None:
    encoder = FaultyEncoder({0: Fault.HANG})
    async with MicroBatcher(encoder, IMPATIENT) as embedder:
        with pytest.raises(EmbedderUnavailable, match="timeout_ms"):
            await embedder.embed("hangs")
        await eventually(lambda: embedder.health() != "", "the hang shows")
        assert embedder.health() == "1 of 1 encoder workers stuck"
        for text in ("another", "hangs"):
            with pytest.raises(EmbedderUnavailable, match="stuck"):
                await embedder.embed(text)
        assert embedder.stats.failures == {Flaw.DEADLINE: 1, Flaw.STUCK: 2}
        encoder.release()
        await eventually(lambda: embedder.health() == "", "the worker is back")
        await embedder.embed("another")


async def test_one_hanging_worker_leaves_the_other_serving() -> None:
    encoder = FaultyEncoder({0: Fault.HANG})
    async with MicroBatcher(encoder, settings.Encoder(threads=2, timeout_ms=500)) as embedder:
        with pytest.raises(EmbedderUnavailable):
            await embedder.embed("hangs")
        await eventually(lambda: embedder.health() != "", "the hang shows")
        assert embedder.health() == "1 of 2 encoder workers stuck"
        assert (await embedder.embed("served by the other")).vector.shape == (encoder.dim,)
        encoder.release()


async def test_a_deadline_passes_for_texts_that_wait_behind_a_hang() -> None:
    encoder = FaultyEncoder({0: Fault.HANG})
    async with MicroBatcher(encoder, IMPATIENT) as embedder:
        results = await asyncio.gather(*(embedder.embed(text) for text in ("a", "b", "c")), return_exceptions=True)
        assert all(isinstance(result, EmbedderUnavailable) for result in results)
        assert embedder.queued == 0
        encoder.release()


async def test_stopping_does_not_wait_for_a_hang_beyond_the_deadline() -> None:
    encoder = FaultyEncoder({0: Fault.HANG})
    with capture_logs() as logs:
        async with MicroBatcher(encoder, IMPATIENT) as embedder:
            with pytest.raises(EmbedderUnavailable):
                await embedder.embed("hangs")
    assert [log["event"] for log in logs] == ["encoder_abandoned"]
    encoder.release()
    await eventually(lambda: embedder.running == 0, "the thread has ended")


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused(tmp_path: Path, pickled: str) -> None:
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").rename(model / pickled)
    with pytest.raises(ConfigError, match="could run code"):
        locate(str(model))


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (b"", "not a whole safetensors file"),
        (b"\x80\x04pickle", "not a whole safetensors file"),
        (safetensors_bytes()[:40], "not a whole safetensors file"),
        (safetensors_bytes()[:-1], "header promises"),
        (b"\x08" + bytes(7) + b"not json" + bytes(16), "header cannot be read"),
        (b"\x08" + bytes(7) + b'{"w": 1}' + bytes(16), "header cannot be read"),
        (safetensors_bytes(layers=5), "holds no tensor 'encoder.layer.5"),
    ],
    ids=["empty", "a pickle", "cut in its header", "cut in its data", "garbage", "odd header", "a layer missing"],
)
def test_damaged_weights_are_refused(tmp_path: Path, weights: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        locate(str(write_model(tmp_path / "model", weights=weights)))


@pytest.mark.parametrize(
    "missing",
    [
        "model.safetensors",
        "config.json",
        "sentence_bert_config.json",
        "modules.json",
        "tokenizer.json",
        "1_Pooling/config.json",
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    model = write_model(tmp_path / "model")
    (model / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        locate(str(model))


def test_an_unreadable_config_is_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "config.json").write_bytes(b"{ \xff")
    with pytest.raises(ConfigError, match=r"config\.json"):
        locate(str(model))


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        open_encoder(settings.Encoder(name=str(tmp_path / "nowhere")), tmp_path)


@pytest.fixture
def exported() -> tuple[Source, Path]:
    """The shipped model and its fp32 export, made once per checkout."""
    folder = ENCODERS / real_encoder("fp32").fingerprint.replace("/", "_")
    return locate("all-MiniLM-L6-v2"), folder


@pytest.mark.parametrize("name", [GRAPH, MANIFEST, "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_damaged_export_is_noticed_and_made_again(
    exported: tuple[Source, Path], tmp_path: Path, name: str, damage: str
) -> None:
    source, folder = exported
    kept = tmp_path / folder.name
    shutil.copytree(folder, kept)
    spoil(kept / name, damage)
    exports: list[str] = []

    def copy(_: Source, precision: str, out: Path) -> None:
        exports.append(precision)
        shutil.copytree(folder, out, dirs_exist_ok=True)

    again, manifest = ensure(source, "fp32", tmp_path, copy)
    assert exports == ["fp32"]
    assert again == kept
    assert isinstance(read_manifest(kept, manifest.fingerprint), Manifest)
    assert ensure(source, "fp32", tmp_path, copy) == (again, manifest)
    assert exports == ["fp32"]
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == [folder.name]


def spoil(file: Path, damage: str) -> None:
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :])


def test_an_export_of_another_encoder_in_the_folder_is_replaced(exported: tuple[Source, Path], tmp_path: Path) -> None:
    _, folder = exported
    shutil.copytree(folder, tmp_path / "other")
    assert "is of all-MiniLM-L6-v2/onnx-fp32" in str(read_manifest(tmp_path / "other", "other"))


def test_a_failing_export_leaves_nothing_behind(exported: tuple[Source, Path], tmp_path: Path) -> None:
    source, _ = exported

    def fail(_: Source, __: str, out: Path) -> None:
        (out / GRAPH).write_bytes(b"half")
        raise ConfigError("the encoder's export failed")

    with pytest.raises(ConfigError, match="export failed"):
        ensure(source, "fp32", tmp_path, fail)
    assert not [file for file in tmp_path.iterdir() if file.is_dir()]


def test_a_cache_directory_that_cannot_be_made_says_which_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"encoder\.cache_dir"):
        open_encoder(settings.Encoder(cache_dir=str(tmp_path / "file" / "encoders"), device="cpu"), tmp_path)
