"""The command that makes the lexicon's data file; what the file holds is tested where it is read."""

from __future__ import annotations

import pytest

from cacheproxy.verify.lexicon import DATA
from cacheproxy.verify.lexicon_build import main


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "DIRECTORY-OF-WORDNET"),
        ([], 2, "are required: DIRECTORY-OF-WORDNET"),
        (["/nowhere"], 2, "/nowhere/data.noun: No such file or directory"),
    ],
)
def test_wrong_use_is_told_and_leaves_the_data_as_it_is(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = DATA.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert (ended.value.code, said in told.out + told.err) == (code, True)
    assert DATA.read_bytes() == before
