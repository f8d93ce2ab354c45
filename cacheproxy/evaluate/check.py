"""`check`: whether a pack is valid and does what its probes claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import PackError
from cacheproxy.policy.loader import load_pack
from cacheproxy.policy.probes import load_probes, run_probes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.model import Classification
    from cacheproxy.policy.pairrule import Verify
    from cacheproxy.policy.probes import ClassifiedResult, ProbeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check found: problems as `file:line: what`, and the result of every probe that could be run."""

    directory: Path
    problems: tuple[str, ...] = ()
    results: tuple[ProbeResult, ...] = ()
    classified: tuple[ClassifiedResult, ...] = ()
    encoder: str = ""

    @property
    def passed(self) -> bool:
        """Whether the pack is valid and every probe holds."""
        return not self.problems


def check_pack(
    directory: Path, open_encoder: Callable[[], TextEncoder], open_verifier: Callable[[], Verify | None] = lambda: None
) -> CheckReport:
    """Validate a pack, then run its probes. Encoder and verifier are opened only for a valid pack that has probes.

    Never raises PackError: an invalid pack is a report with problems. Raises what the encoder raises.
    """
    try:
        pack = load_pack(directory)
        probes = load_probes(directory, pack)
    except PackError as exc:
        return CheckReport(directory=directory, problems=tuple(exc.message.splitlines()))
    if not len(probes):
        return CheckReport(directory=directory)
    encoder = open_encoder()
    results, classified = run_probes(pack, probes, encoder.encode, encoder.fingerprint, open_verifier())
    failures = [
        f"{probes.file}:{line}: probes[{at}] expected a {result.probe.expect}: {_evidence(result)}; {result.probe.why}"
        for at, (line, result) in enumerate(zip(probes.lines, results, strict=True))
        if not result.passed
    ]
    failures += [
        f"{probes.file}:{line}: classified[{at}] expected {one.probe.category}: {_taken_for(one.told)}"
        + (f"; {one.probe.why}" if one.probe.why else "")
        for at, (line, one) in enumerate(zip(probes.classified_lines, classified, strict=True))
        if not one.passed
    ]
    return CheckReport(
        directory=directory,
        problems=tuple(failures),
        results=tuple(results),
        classified=tuple(classified),
        encoder=encoder.fingerprint,
    )


def render_check(report: CheckReport) -> str:
    """Return the report for a terminal: every problem on a line of its own, then one line of summary."""
    outcomes = [*(one.passed for one in report.results), *(one.passed for one in report.classified)]
    probes = f"{sum(outcomes)} of {len(outcomes)} probes hold" if outcomes else "no probes were run"
    encoder = f" with encoder {report.encoder}" if report.encoder else ""
    verdict = "ok" if report.passed else "failed"
    return "\n".join([*report.problems, f"{report.directory}: {verdict}: {probes}{encoder}"])


def _evidence(result: ProbeResult) -> str:
    ruling = result.ruling
    threshold = "none" if ruling.threshold is None else f"{ruling.threshold:.3f}"
    return f"{ruling.reason} (category {ruling.category}, similarity {ruling.similarity:.3f}, threshold {threshold})"


def _taken_for(told: Classification) -> str:
    margin = "" if told.margin is None else f", margin {told.margin:.2f}"
    return f"{told.category}{f' or {told.second}' if told.second else ''} ({told.source}{margin})"
