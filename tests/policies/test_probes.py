from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy import settings
from cacheproxy.embed.locate import locate
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.check import check_pack
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.probes import load_probes
from tests.support.proxy import ENCODERS

if TYPE_CHECKING:
    from pathlib import Path

PACKS = sorted(file.parent.name for file in find_pack("balanced").parent.glob("*/policy.toml"))
PRECISIONS = ["fp32", pytest.param("int8", marks=pytest.mark.slow)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", PACKS)
def test_every_probe_of_a_shipped_pack_holds(name: str, precision: str, tmp_path: Path) -> None:
    encoder = settings.Encoder(device="cpu", precision=precision, cache_dir=str(ENCODERS))
    report = check_pack(find_pack(name), lambda: open_encoder(encoder, tmp_path))
    assert report.results
    assert report.problems == ()


@pytest.mark.parametrize("name", PACKS)
def test_a_shipped_pack_is_calibrated_for_the_gpu_encoder_too(name: str) -> None:
    pack = load_pack(find_pack(name))
    fingerprint = locate(settings.Encoder().name).fingerprint("torch-fp16", "float16")
    assert pack.threshold(pack.default_category, fingerprint) is not None


@pytest.mark.parametrize("name", PACKS)
def test_a_shipped_pack_is_whole(name: str) -> None:
    directory = find_pack(name)
    pack = load_pack(directory)
    assert pack.name == name
    probes = load_probes(directory, pack).probes
    assert {probe.expect for probe in probes} == {"hit", "miss"}
    assert len({(probe.cached, probe.asked, probe.category) for probe in probes}) == len(probes)
    assert (directory / "README.md").is_file()
