"""Targets that are files of other runtimes: an ONNX model for ONNX Runtime, and a TensorFlow Lite file for LiteRT.

What edgec did is the graph then, pruned, folded and quantised; the kernels are the runtime's. The manifest is kept in
the file's own metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgec.errors import EdgecError
from edgec.report import Report, told

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.grid import Grid

METADATA = "edgec"
"""The key of the manifest in a file's metadata."""
TFLITE_MARK = b"TFL3"
_MARK_OFFSET = 4


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: what ``--target`` takes.
        description: one line for ``edgec targets``.
        suffix: of the file's name.
        runtime: the adapter in :mod:`edgec.runtimes.peers` that runs it.
        packs_weights: whether it keeps integer weights under float activations.
    """

    name: str
    description: str
    suffix: str
    runtime: str
    packs_weights: bool

    fuses_sums: ClassVar[bool] = False
    """See :class:`edgec.targets.target.Target`; neither runtime does with integers of 16 bits."""
    weight_factors: ClassVar[bool] = False
    """Files hold integers of 4 bits, and no factors beside them."""

    @property
    def activation_dtype(self) -> str:
        """In which 8-bit activations are written."""
        from edgec.passes.activation_dtype import FOR_ONNXRUNTIME

        return FOR_ONNXRUNTIME if self.runtime == "onnxruntime" else "int8"

    def default_output(self, name: str) -> Path:
        """Where the file goes unless told otherwise; not over the model that it is made from."""
        return Path(f"{name}.{self.name}{self.suffix}" if self.suffix == ".onnx" else f"{name}{self.suffix}")

    def lanes(self, dtype_bytes: int) -> int:
        """Channels that are removed together when a model is pruned: what vectors of 128 bits hold."""
        return 16 // max(4, dtype_bytes)

    def check_path(self, path: Path) -> None:
        """Refuse another suffix than the format's.

        Raises:
            EdgecError: naming it.
        """
        if path.suffix != self.suffix:
            raise EdgecError(
                f"the output '{path}' does not end in {self.suffix}, which the target {self.name} writes; rename it"
            )


FORMATS = {
    each.name: each
    for each in (
        Format("onnxruntime", "ONNX Runtime: an ONNX model, QDQ if quantised", ".onnx", "onnxruntime", True),
        Format("tflite", "LiteRT (TensorFlow Lite): a .tflite file", ".tflite", "litert", False),
    )
}


def format_of(path: Path) -> Format | None:
    """The format of a file that edgec wrote for another runtime; None for any other file."""
    kinds = [each for each in FORMATS.values() if each.suffix == path.suffix]
    return kinds[0] if kinds and path.is_file() and _stored(path) is not None else None


def is_tflite(path: Path) -> bool:
    """Whether a file looks like a TensorFlow Lite one."""
    try:
        with path.open("rb") as file:
            return file.read(_MARK_OFFSET + len(TFLITE_MARK))[_MARK_OFFSET:] == TFLITE_MARK
    except OSError:
        return False


def read_format_manifest(path: Path) -> dict[str, Any]:
    """What edgec wrote into the file.

    Raises:
        EdgecError: it is none of edgec's, or damaged.
    """
    stored = _stored(path)
    if stored is None:
        raise EdgecError(f"'{path}' is not an edgec artifact: it was not written by edgec compile; compile it first")
    manifest: dict[str, Any] = json.loads(stored)
    return manifest


def _stored(path: Path) -> bytes | None:
    if is_tflite(path):
        from edgec.targets.tflite.writer import read_metadata

        return read_metadata(path.read_bytes(), METADATA)
    if path.suffix != ".onnx":
        return None
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return None
    return next((entry.value.encode() for entry in proto.metadata_props if entry.key == METADATA), None)


@dataclass(frozen=True)
class FormatReport(Report):
    """The story of a compilation to a file of another runtime."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **self.manifest,
            "artifact_bytes": self.artifact_bytes,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "passes": [asdict(report) for report in self.passes],
            "quantisation": self.quantisation.as_dict() if self.quantisation else None,
        }

    def __str__(self) -> str:
        lines = [*told(self.passes), *([str(self.quantisation)] if self.quantisation else [])]
        return "\n".join([*lines, f"{self.manifest['format']}: {self.artifact_bytes:,} bytes"])


def write_format(
    graph: ir.Model, kind: Format, manifest: Mapping[str, Any], grids: Mapping[str, Grid]
) -> tuple[bytes, dict[str, Any]]:
    """The file of ``graph``, and its manifest as stored.

    Args:
        graph: after all passes, float or QDQ; it is not changed.
        kind: the format.
        manifest: what there is to say; the inputs and outputs are added.
        grids: of the inputs and outputs that are integers.

    Raises:
        UnsupportedModelError: with the nodes that have no form in the format.
    """
    plain = _spelled_out(graph)
    facts = {**manifest, "target": kind.name, "format": kind.suffix.removeprefix("."), **_tensors(plain, grids)}
    text = json.dumps(facts, separators=(",", ":"), sort_keys=True)
    if kind.name == "onnxruntime":
        import onnx_ir as ir

        plain.metadata_props[METADATA] = text
        return ir.to_proto(plain).SerializeToString(), facts
    from edgec.targets.tflite.convert import Converter

    converter = Converter(plain, grids)
    inputs, outputs = converter.convert()
    sources, results = ([value.tensor for value in values] for values in (inputs, outputs))
    return converter.writer.pack(sources, results, {METADATA: text.encode()}), facts


def _spelled_out(graph: ir.Model) -> ir.Model:
    """A copy in ONNX's own operators: other tools know no functions of edgec's."""
    import onnx_ir.passes.common as common

    from edgec.frontend.shapes import infer_shapes
    from edgec.passes.pipeline import select
    from edgec.transformation import apply_passes

    copy = graph.clone()
    if copy.functions:
        common.InlinePass()(copy)
        common.RemoveUnusedFunctionsPass()(copy)  # type: ignore[no-untyped-call]
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
        common.NameFixPass()(copy)
        infer_shapes(copy)
        apply_passes(copy, select(["simplify"]), None)
    common.RemoveUnusedNodesPass()(copy)
    common.RemoveUnusedOpsetsPass()(copy)
    return copy


def _tensors(graph: ir.Model, grids: Mapping[str, Grid]) -> dict[str, Sequence[dict[str, Any]]]:
    """Inputs and outputs as manifests list them, in ONNX's own layout."""

    def entry(value: ir.Value, kind: str) -> dict[str, Any]:
        assert value.shape is not None and value.dtype is not None
        shape = [int(extent) for extent in value.shape.numpy()]
        name = str(value.name)
        grid = {"scale": grids[name].scale, "zero_point": grids[name].zero} if name in grids else {}
        return {"name": name, "shape": shape, "dtype": str(value.dtype.numpy()), "kind": kind, **grid}

    return {
        "inputs": [entry(value, "input") for value in graph.graph.inputs],
        "outputs": [entry(value, "output") for value in graph.graph.outputs],
    }
