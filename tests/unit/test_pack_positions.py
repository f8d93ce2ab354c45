from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from cacheproxy.policy.positions import key_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheproxy.policy.positions import Path

DOCUMENT = '''\
# a comment with [brackets] and a = sign
schema = 1   # trailing
"quoted key" = 'a # that is no comment'
text = """
not.a = "key"
[nor.a.table] """"

[categories.code]
threshold = 0.9
limits.soft.count = 3

[encoders."onnx fp32".thresholds]
default = 0.8
'literal.key' = 1e-3

[[prices]]
model = "a"
inline = { input = 1, "out.put" = [1, 2], nested = { deep = true } }

[[prices]]
model = 'b'
many = [
  1,          # first
  { x = 2 },  # second
  [ "]", 3 ],
]
[prices.detail]
since = 2025-01-01 00:00:00
[[prices.detail.rows]]
a = 1
[[prices.detail.rows]]
a = 2
'''


def paths(value: object, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from paths(item, (*path, at))


def test_every_key_table_and_item_has_a_line_and_nothing_else_has() -> None:
    assert set(key_lines(DOCUMENT)) == set(paths(tomllib.loads(DOCUMENT)))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (("schema",), "schema = 1"),
        (("quoted key",), '"quoted key"'),
        (("text",), 'text = """'),
        (("categories",), "[categories.code]"),
        (("categories", "code", "threshold"), "threshold = 0.9"),
        (("categories", "code", "limits", "soft", "count"), "limits.soft.count"),
        (("encoders", "onnx fp32", "thresholds", "literal.key"), "'literal.key'"),
        (("prices",), "[[prices]]"),
        (("prices", 0, "inline", "nested", "deep"), "inline ="),
        (("prices", 1), "[[prices]]"),
        (("prices", 1, "model"), "model = 'b'"),
        (("prices", 1, "many", 1, "x"), "{ x = 2 }"),
        (("prices", 1, "many", 2, 1), '[ "]", 3 ]'),
        (("prices", 1, "detail", "since"), "since ="),
        (("prices", 1, "detail", "rows", 1, "a"), "a = 2"),
    ],
)
def test_the_line_is_the_one_the_key_stands_on(path: Path, content: str) -> None:
    assert content in DOCUMENT.splitlines()[key_lines(DOCUMENT)[path] - 1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n# only a comment",
        "a = 1",
        "a = []\nb = {}\nc = [ ]\n",
        "a = [1, 2,]\n",
        "a = [\n\n# c\n1 # d\n, 2\n]\nb = 1",
        "a = [[], [[]], [{}]]",
        "a = [{b = 1}, {c = {d = [1]}}]",
        'a = "\\"" # "\nb = \'\\\'\nc = 1',
        "a = '''x''''\nb = 1\n",
        'a = """x\\""" """\nb = 1\n',
        '"" = 1\n"a\\u0041" = 2',
        " a . b . c = 1\n[ x . y ]\nz = 1",
        "a = 1\r\nb = 2\r\n",
        "[a]\n[a.b]\n[a.c]\nd = 1",
    ],
)
def test_awkward_documents_are_covered_whole(text: str) -> None:
    assert set(key_lines(text)) == set(paths(tomllib.loads(text)))


def test_a_carriage_return_does_not_count_as_a_line() -> None:
    assert key_lines("a = 1\r\nb = 2\r\n")["b",] == 2
