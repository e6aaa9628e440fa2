"""What a compilation did, as a table, as JSON, and as an object that prints itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgec.passes.base import PassReport
    from edgec.quantisation.quantise import Quantisation
    from edgec.tuning.tuner import Tuned


def told(passes: Sequence[PassReport]) -> list[str]:
    """The passes that did something or left something alone, a line each, and how many did not."""
    lines = [str(each) for each in passes if each.matched or each.refusals or each.before != each.after]
    idle = len(passes) - len(lines)
    return [*lines, *([f"{idle} other passes found nothing to do"] if idle else [])]


@dataclass(frozen=True)
class Report:
    """The story of one compilation.

    Attributes:
        manifest: what the artifact says of itself.
        passes: what each pass did, in order.
        nodes: the ONNX nodes that each step computes.
        artifact_bytes: the artifact file's size.
        seconds: time per stage.
        tuned: what the tuner found, if it ran.
        quantisation: what was quantised and how well, if anything was.
        operand_bytes: the size of each step's operands: what it reads and writes at least once.
    """

    manifest: dict[str, Any]
    passes: tuple[PassReport, ...]
    nodes: tuple[tuple[str, ...], ...]
    artifact_bytes: int
    seconds: dict[str, float]
    tuned: Tuned | None = None
    quantisation: Quantisation | None = None
    operand_bytes: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **self.manifest,
            "artifact_bytes": self.artifact_bytes,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "passes": [asdict(report) for report in self.passes],
            "nodes": [list(nodes) for nodes in self.nodes],
            "operand_bytes": list(self.operand_bytes),
            "quantisation": self.quantisation.as_dict() if self.quantisation else None,
            "tuning": self.tuned.as_dict() if self.tuned else None,
        }

    def __str__(self) -> str:
        facts, slack = self.manifest, self.manifest["arena_lower_bound"] or 1
        lines = told(self.passes)
        lines += [str(self.quantisation)] if self.quantisation else []
        lines += [
            f"steps: {len(facts['steps'])}, {sum(s['macs'] for s in facts['steps']):,} MACs",
            f"weights: {facts['weights_bytes']:,} bytes{coded_weights(facts)}, artifact: {self.artifact_bytes:,} bytes",
            *([f"widths: {' and '.join(map(str, facts['widths']))} bits"] if facts.get("widths") else []),
            f"arena: {facts['arena_bytes']:,} bytes, {facts['arena_bytes'] / slack:.2f} × the largest live set",
            "time: " + ", ".join(f"{stage} {value:.2f} s" for stage, value in self.seconds.items()),
        ]
        return "\n".join(lines)


def coded_weights(facts: Mapping[str, Any]) -> str:
    """What the entropy coding of an artifact's weights saves, to be said behind their bytes; "" without it."""
    coded, plain = facts.get("coded_bytes", 0), facts["weights_bytes"]
    return f", {coded:,} coded ({coded / plain:.1%})" if coded else ""
