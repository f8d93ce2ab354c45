"""What a run says of itself: its lines of progress, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRESS = "progress.jsonl"


class Tale:
    """Follows the progress of a run from where it stands now."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / PROGRESS
        self._at = self._file.stat().st_size if self._file.exists() else 0
        self.why_ended = ""
        """Why the run ended before its time, "" where it did not."""
        self.finished = False

    def lines(self) -> Iterator[str]:
        """Yield what is new, in words."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._at += len(line)
                told = msgspec.json.decode(line, type=dict[str, Any])
                self.finished |= told["event"] == "finished"
                if told["event"] == "ended":
                    self.why_ended = str(told["why"])
                elif words := _words(told):
                    yield words


def _words(told: dict[str, Any]) -> str:
    match told["event"]:
        case "resumed":
            return f"going on after round {told['round']}"
        case "begun":
            if "f05" not in told:
                return "training under differential privacy: only the last head is counted"
            return f"before training: {_scores(told)}, {told['nodes']:g} nodes, {told['held_pairs']:g} held-back pairs"
        case "round":
            return f"round {told['round']} of {told['of']}: {_scores(told)}{_refused(told['refused'])}"
        case "refused":
            return f"round {told['round']}: not all {told['of']} could be used{_refused(told['refused'])}"
        case "no_quorum":
            return f"round {told['round']}: {told['sound']} sound replies are too few{_refused(told['refused'])}"
        case "finished":
            return f"finished: {_scores(told)}; the head is {told['epoch']}"
        case _:
            return ""


def _scores(told: dict[str, Any]) -> str:
    if "f05" not in told:
        return (
            "nothing counted" if told["event"] == "round" else "too few nodes to choose a threshold under so much noise"
        )
    return f"F0.5 {told['f05']:.3f}, precision {told['precision']:.3f}, recall {told['recall']:.3f}"


def _refused(refused: dict[str, int]) -> str:
    return f" ({', '.join(f'{many} {reason}' for reason, many in sorted(refused.items()))})" if refused else ""
