"""What the settings of the small model come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from cacheproxy.cli import main
from cacheproxy.configure import load
from cacheproxy.errors import ConfigError
from cacheproxy.settings import Settings, Small
from cacheproxy.upstream.open import refuse_loops
from cacheproxy.upstream.small import form_of, model_of

if TYPE_CHECKING:
    from pathlib import Path

DOWN = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("small", "model", "form"),
    [
        (Small(url=DOWN, model="m"), "m", "block"),
        (Small(url=DOWN, model="m", form="turns"), "m", "turns"),
        (Small(url="local"), "smollm2-135m-instruct", "turns"),
        (Small(url="local", form="block"), "smollm2-135m-instruct", "block"),
    ],
)
def test_its_name_and_its_form_follow_from_where_it_is(small: Small, model: str, form: str) -> None:
    assert (model_of(Settings(small=small)), form_of(small)) == (model, form)


def test_a_form_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"small\.form.*auto"):
        load(None, environ={}, flags={"small": {"form": "rhymes"}})


def test_a_small_model_that_is_the_proxy_itself_is_refused() -> None:
    chosen = Settings(small=Small(url="http://localhost:18080/v1", model="m"))
    with pytest.raises(ConfigError, match=r"^small\.url"):
        refuse_loops(chosen, 18080)


def test_a_model_without_a_place_is_refused() -> None:
    assert model_of(Settings()) == ""
    with pytest.raises(ConfigError, match=r"^small\.url \(--small-upstream\)"):
        model_of(Settings(small=Small(model="m")))


def test_the_flag_names_the_small_model(tmp_path: Path) -> None:
    flags = ["--data-dir", str(tmp_path), "--port", "0", "--admin-port", "0", "--small-upstream", DOWN]
    result = CliRunner().invoke(main, ["serve", *flags], env={"CACHEPROXY_UPSTREAM__URL": DOWN})
    assert result.exit_code == 2
    assert "small.model (--small-model)" in result.output
