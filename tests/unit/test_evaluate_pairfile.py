from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.pairfile import LabelledPair, read_pairs

if TYPE_CHECKING:
    from pathlib import Path

ROWS = b"""\xef\xbb\xbf{"a": "x", "b": "y", "label": 1}

{"a": "x", "b": "z", "same_answer": false, "category": "code", "cluster": "17"}
{"a": "x", "b": "w", "label": true, "same_answer": 1, "category": null}\r
"""
PAIRS = [
    LabelledPair(a="x", b="y", label=True),
    LabelledPair(a="x", b="z", label=False, category="code"),
    LabelledPair(a="x", b="w", label=True),
]


def test_pairs_are_read_with_either_name_of_the_label(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(ROWS)
    assert read_pairs(tmp_path / "pairs.jsonl") == PAIRS


def test_a_gzip_file_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_bytes(gzip.compress(ROWS))
    assert read_pairs(tmp_path / "pairs") == PAIRS


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": "secret"', "Input data was truncated"),
        (b'{"a": "secret", "label": 1}', "missing required field `b`"),
        (b'{"a": "secret", "b": 7, "label": 1}', "Expected `str`, got `int`"),
        (b'{"a": "secret", "b": "y"}', "neither label nor same_answer"),
        (b'{"a": "secret", "b": "y", "label": 2}', "label must be 0 or 1"),
        (b'{"a": "secret", "b": "y", "label": "1"}', "Expected `bool | int | null`"),
        (b'{"a": "secret", "b": "y", "label": 1, "same_answer": false}', "label and same_answer disagree"),
        (b'["secret"]', "Expected `object`, got `array`"),
        (b'{"a": "secret \xff", "b": "y", "label": 1}', "each line must be"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line_and_not_quoted(tmp_path: Path, line: bytes, problem: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(ROWS + line + b"\n")
    with pytest.raises(ConfigError) as caught:
        read_pairs(file)
    assert str(caught.value).startswith(f"{file}:5: ")
    assert problem in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\n", "holds no pair"),
        (gzip.compress(ROWS)[:-12], "damaged gzip"),
        (gzip.compress(ROWS)[:4] + b"nonsense", "gzip"),
    ],
)
def test_a_file_without_pairs_or_with_damage_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        read_pairs(tmp_path / "pairs.jsonl")


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\); give a JSONL file"):
        read_pairs(tmp_path / "pairs.jsonl")
