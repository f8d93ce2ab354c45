"""What an installed wheel brings of the app."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cacheproxy_federated import supernode
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's, as it packs apps
def test_a_node_from_a_wheel_runs_the_same_app_as_a_server_from_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=100)
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name or name.endswith(".pyc")]
        archive.extractall(site)
    find = "from cacheproxy.federation.app import app_folder; print(app_folder())"
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {find}"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=kept, capture_output=True, text=True, check=True, timeout=60
    )
    folder = Path(told.stdout.strip())
    assert folder == site / "cacheproxy" / "_federated"
    assert supernode.digest_of(build_fab_from_disk(folder)) == supernode.own_digest() != ""
