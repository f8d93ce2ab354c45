"""Several proxies share a data directory: each owns a folder in it, and the commands find one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.install import claim, own_folder, running_admin_url
from cacheproxy.settings import Data, Settings

if TYPE_CHECKING:
    from pathlib import Path


def settings(folder: Path, *, shared: bool) -> Settings:
    return Settings(data=Data(dir=str(folder), shared=shared))


def test_each_of_those_who_share_it_owns_the_first_folder_that_is_free(tmp_path: Path) -> None:
    shared = settings(tmp_path, shared=True)
    with own_folder(shared) as (first, _):
        with own_folder(shared) as (second, _):
            assert (first, second) == (tmp_path / "replica-1", tmp_path / "replica-2")
        with own_folder(shared) as (again, _):
            assert again == second
    assert first.stat().st_mode & 0o777 == 0o700


def test_one_that_is_not_shared_is_owned_whole(tmp_path: Path) -> None:
    with own_folder(settings(tmp_path, shared=False)) as (folder, _):
        assert folder == tmp_path
        with pytest.raises(ConfigError, match="in use by another proxy"), claim(tmp_path):
            pass


def test_commands_find_one_of_those_who_share_it(tmp_path: Path) -> None:
    shared = settings(tmp_path, shared=True)
    assert running_admin_url(tmp_path) is None
    with own_folder(shared) as (_, first), own_folder(shared) as (folder, second):
        second.announce("http://127.0.0.1:2")
        assert running_admin_url(tmp_path) == "http://127.0.0.1:2"
        first.announce("http://127.0.0.1:1")
        assert running_admin_url(tmp_path) == "http://127.0.0.1:1"
        assert running_admin_url(folder) == "http://127.0.0.1:2"
    assert running_admin_url(tmp_path) is None
