"""The real encoders: the CPU export against sentence-transformers, and the torch path, run on a CPU."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy import settings
from cacheproxy.embed.artefact import DEVIATION_LIMITS, MANIFEST, Manifest, ensure, read_manifest
from cacheproxy.embed.batcher import MicroBatcher
from cacheproxy.embed.locate import locate
from cacheproxy.embed.open import open_encoder
from cacheproxy.errors import ConfigError
from tests.support.encoders import ENCODERS, real_encoder, write_model

if TYPE_CHECKING:
    from pathlib import Path

NAME = "all-MiniLM-L6-v2"
TEXTS = [
    "a",
    "How do I cancel my subscription?",
    "How can I cancel my subscription?",
    "What is 17 + 25?",
    "Why is the sky blue, and why are sunsets red? " * 6,
    "Explain photosynthesis. " * 40,
]
LONG = "head of the text " * 100 + "middle " * 1000 + "tail of the text " * 100
PRECISIONS = ["fp32", pytest.param("int8", marks=pytest.mark.slow)]


def manifest(precision: str) -> Manifest:
    fingerprint = real_encoder(precision).fingerprint
    found = read_manifest(ENCODERS / fingerprint.replace("/", "_"), fingerprint)
    assert isinstance(found, Manifest)
    return found


def test_the_fingerprints_are_the_ones_that_packs_calibrate_for() -> None:
    # A change here orphans every stored vector and every calibrated threshold: it must be meant.
    assert real_encoder("fp32").fingerprint == "all-MiniLM-L6-v2/onnx-fp32/1-bacdfb56e2eb"


@pytest.mark.slow
def test_each_precision_has_its_own_fingerprint() -> None:
    assert real_encoder("int8").fingerprint == "all-MiniLM-L6-v2/onnx-int8/1-6d8f46d813b4"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_export_records_how_far_it_is_from_its_source(precision: str) -> None:
    found = manifest(precision)
    assert found.weights_sha256 == locate(NAME).weights_sha256
    assert 0 <= found.check.max_cosine_deviation < DEVIATION_LIMITS[precision]
    assert found.check.texts > 10


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_does_not_depend_on_the_other_texts_of_its_batch(precision: str) -> None:
    encoder = real_encoder(precision)
    together, _ = encoder.encode(TEXTS)
    for vector, text in zip(together, TEXTS, strict=True):
        [alone], _ = encoder.encode([text])
        assert vector @ alone == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 16), pytest.param("int8", 1, marks=pytest.mark.slow)])
async def test_a_batch_on_a_cpu_holds_no_more_texts_than_gain_by_it(precision: str, most: int) -> None:
    config = settings.Encoder(threads=1, max_batch=32)
    async with MicroBatcher(real_encoder(precision), config) as embedder:
        await asyncio.gather(*(embedder.embed(f"question number {number}") for number in range(33)))
        assert embedder.stats.texts == 33
        assert embedder.stats.batches == 1 + -(-32 // most)  # the first one goes alone


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_may_share_an_encoder(precision: str) -> None:
    encoder = real_encoder(precision)
    expected, _ = encoder.encode(TEXTS)
    with ThreadPoolExecutor(4) as threads:
        for vectors, _ in threads.map(encoder.encode, [TEXTS] * 8):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_paraphrase_is_nearer_than_another_question() -> None:
    vectors, _ = real_encoder("fp32").encode(TEXTS)
    assert vectors[1] @ vectors[2] > 0.9
    assert vectors[1] @ vectors[3] < 0.5


def test_the_cpu_path_imports_no_torch() -> None:
    real_encoder("fp32")  # exported by now
    probe = (
        "import sys; from pathlib import Path; from cacheproxy import settings; "
        "from cacheproxy.embed.open import open_encoder; "
        f"open_encoder(settings.Encoder(device='cpu', cache_dir={str(ENCODERS)!r}), Path('.')); "
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'onnx'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_cpu_encoder_agrees_with_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(locate(NAME).directory), device="cpu", local_files_only=True)
    reference = model.encode(TEXTS, convert_to_numpy=True, show_progress_bar=False)
    vectors, unseen = real_encoder("fp32").encode(TEXTS)
    assert unseen == [b""] * len(TEXTS)
    np.testing.assert_allclose(vectors @ vectors.T, reference @ reference.T, atol=1e-4)
    np.testing.assert_allclose(vectors, reference, atol=1e-4)


@pytest.mark.slow
def test_the_torch_encoder_agrees_with_the_export_under_the_same_long_input_rule() -> None:
    from cacheproxy.embed.sentence import SentenceEncoder

    encoder = SentenceEncoder(locate(NAME), "cpu")
    vectors, unseen = encoder.encode([*TEXTS, LONG])
    expected, expected_unseen = real_encoder("fp32").encode([*TEXTS, LONG])
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    assert unseen == expected_unseen
    assert unseen[-1] != b""
    assert vectors.dtype == np.float32
    assert encoder.fingerprint.startswith("all-MiniLM-L6-v2/torch-fp32/1-")
    assert (encoder.dim, encoder.weigh("x" * 10_000)) == (384, 256)


@pytest.mark.slow
def test_two_processes_export_once(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from cacheproxy.embed.artefact import ensure; "
        f"from cacheproxy.embed.locate import locate; ensure(locate({NAME!r}), 'fp32', Path({str(tmp_path)!r}))"
    )
    racers = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        outputs = [racer.communicate(timeout=110)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sum(output.count("encoder_export_finished") for output in outputs) == 1
    [folder] = [file for file in tmp_path.iterdir() if file.is_dir()]
    assert json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["check"]["max_cosine_deviation"] < 1e-4


@pytest.mark.slow
def test_an_export_that_fails_says_why(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"export failed \(exit 1\): .+"):
        ensure(locate(str(model)), "fp32", tmp_path / "cache")


@pytest.mark.slow
def test_opening_with_an_unusable_device_is_a_configuration_error(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"encoder\.device"):
        open_encoder(settings.Encoder(device="cuda"), tmp_path)


@pytest.mark.slow
def test_the_gpus_benchmark_runs_its_code_on_a_cpu_when_told_to(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", "cpu", "--repeats", "8", "--smoke"]
    subprocess.run([*command, "--out", str(out)], capture_output=True, check=True, cwd=ENCODERS.parents[1], timeout=110)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["largest_difference_of_a_cosine"] < 1e-4
    assert report["gpu"]["30 words"]["texts_per_s"]["batches of 8, 2 threads"] > 0
