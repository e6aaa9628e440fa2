"""Which layer lost the accuracy: the error of a quantised model, layer by layer.

Two graphs are compared whose nodes have the same names: a float one and its quantised twin (QDQ, from edgec or another
tool that keeps names). A layer is a node that reads integers, or has integer weights, in the twin. "Alone" is the float
model with that one layer quantised, measured at the model's outputs; "up to here" compares the layer's own result in
the twin with the float model's. Both are ratios of mean squares, in dB.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend.summary import operator_name
from edgec.frontend.values import constant_of, input_of
from edgec.passes.integer_weights import integer_weights
from edgec.passes.quantize.execution import ModelRunner, Sample
from edgec.passes.quantize.products import product_of
from edgec.passes.quantize.report import decibels, signal_to_noise
from edgec.passes.rewriting import Refused, new_constant
from edgec.quantisation.quantise import companions

if TYPE_CHECKING:
    from edgec.data.samples import Array

Progress = Callable[[str, int, int], None]

MOST_SAMPLES = 16
"""The first so many samples tell the layers apart."""


@dataclass(frozen=True)
class LayerError:
    """One layer.

    Attributes:
        name: the node's.
        op: its operator.
        bits: of its activations, ``int8`` or ``int16``; or ``weights``, where only these are integers.
        alone: SQNR of the model's outputs with only this layer quantised, in dB.
        accumulated: SQNR of the layer's own result in the whole quantised model, in dB.
        weights_alone: as ``alone``, with the layer's weights only; None where it has none.
        activations_alone: as ``alone``, with what it reads only; None where that is float, as the next three.
        low: the least real number of the grid that it reads (of its first activation).
        high: the largest.
        clipped: share of what it reads that lies outside.
        time_share: its share of an inference's time, where that was measured.
        microseconds: its time in the quantised model.
        float_microseconds: its time in the float model.
    """

    name: str
    op: str
    bits: str
    alone: float
    accumulated: float
    weights_alone: float | None
    activations_alone: float | None
    low: float | None
    high: float | None
    clipped: float | None
    time_share: float | None = None
    microseconds: float | None = None
    float_microseconds: float | None = None

    def __str__(self) -> str:
        text = f"{self.name} ({self.op}, {self.bits}): alone {self.alone:.1f} dB, up to here {self.accumulated:.1f} dB"
        if self.clipped is None:
            return text
        return f"{text}, range [{self.low:.4g}, {self.high:.4g}], {self.clipped:.2%} clipped"

    @property
    def loses_by_weights(self) -> bool:
        """Whether most of its error comes from its weights."""
        if self.weights_alone is None or self.activations_alone is None:
            return self.activations_alone is None
        return self.weights_alone < self.activations_alone


@dataclass(frozen=True)
class LayerErrors:
    """All layers in the order of the graph, and the SQNR of the whole model's outputs, in dB."""

    layers: tuple[LayerError, ...]
    whole: float
    samples: int

    def worst_first(self) -> list[str]:
        """The layers' names, the one that costs most first."""
        return [layer.name for layer in sorted(self.layers, key=lambda layer: layer.alone)]

    @property
    def verdict(self) -> str:
        """Which layer lost most, as a sentence."""
        if not self.layers:
            return "no layer of the model is quantised"
        worst = min(self.layers, key=lambda layer: layer.alone)
        cause = f"most of it by {'its weights' if worst.loses_by_weights else 'what it reads'}"
        return (
            f"{worst.op} '{worst.name}' lost most: alone it leaves {worst.alone:.1f} dB, {cause}; "
            f"the whole model has {self.whole:.1f} dB"
        )

    def __str__(self) -> str:
        return "\n".join([*map(str, self.layers), self.verdict])


@dataclass(frozen=True)
class _Pair:
    """An activation that is quantised: the constants of its grid."""

    scale: Array
    zero: Array

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest real number of the grid."""
        info, zero = np.iinfo(self.zero.dtype), int(self.zero)
        return tuple(float(self.scale) * (bound - zero) for bound in (info.min, info.max))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Layer:
    """What is quantised of a node: grids of its activations and dequantised weights, by input index.

    ``bias`` is what a product with integer weights has instead of its own: the node's name, the index, the constant.
    """

    node: ir.Node
    twin: ir.Node
    pairs: Mapping[int, _Pair]
    weights: Mapping[int, Array]
    bias: tuple[str, int, Array] | None

    @property
    def limits(self) -> tuple[float, float] | tuple[None, None]:
        """The range of the first activation that is on a grid."""
        pair = next(iter(self.pairs.values()), None)
        return (None, None) if pair is None else pair.limits


def measure_layers(
    model: ir.Model, quantised: ir.Model, samples: Sequence[Sample], progress: Progress | None = None
) -> LayerErrors:
    """Measure every layer of ``quantised`` against the float ``model``.

    Args:
        model: the float graph that was quantised; it is not changed.
        quantised: its QDQ twin.
        samples: inputs of some runs; the first :data:`MOST_SAMPLES` are taken.
        progress: told (what, done, total).

    Raises:
        EdgecError: the two have no layers of the same name, the weights of one are not those of the other, or ONNX
            Runtime cannot run one.
    """
    tell = progress or (lambda what, done, total: None)
    layers = list(_layers(model, quantised))
    if not layers:
        raise EdgecError(
            "no quantised layer has the name of a layer of the float model; compare the models that edgec compile "
            "wrote beside the artifact, or two whose nodes have the same names"
        )
    _require_own_weights(layers)
    chosen = list(samples)[:MOST_SAMPLES]
    wanted = ModelRunner(model).run_all(chosen)
    accumulated, clipped = _along(model, quantised, layers, chosen)

    def outputs_error(layer: _Layer, weights: bool, activations: bool) -> float:
        return _sqnr(ModelRunner(_with_layer(model, quantised, layer, weights, activations)).run_all(chosen), wanted)

    found = []
    for index, layer in enumerate(layers):
        low, high = layer.limits
        activations = outputs_error(layer, False, True) if layer.pairs else None
        weights = outputs_error(layer, True, False) if layer.weights else None
        alone = next(e for e in (activations, weights) if e is not None)
        if activations is not None and weights is not None:
            alone = outputs_error(layer, True, True)
        found.append(
            LayerError(
                str(layer.node.name), operator_name(layer.node), _bits(layer), alone, accumulated[index],
                weights, activations, low, high, clipped[index] if layer.pairs else None,
            )
        )  # fmt: skip
        tell("layers", index + 1, len(layers))
    whole = _sqnr(ModelRunner(quantised).run_all(chosen), wanted)
    return LayerErrors(tuple(found), whole, len(chosen))


def compare_layers(
    model: Path,
    quantised: Path,
    calib: Path,
    preprocess: Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> LayerErrors:
    """What each layer's quantisation costs.

    Args:
        model: the float ONNX file.
        quantised: an artifact that was compiled from it with ``quantize``, or a quantised ONNX file.
        calib: samples to measure on: see :func:`edgec.data.samples.load_samples`.
        preprocess: how images become inputs, for a folder of them.
        shapes: pins dynamic inputs.
        progress: told (what, done, total).

    Returns:
        With an artifact for this machine, each layer's time, too, and that of its float twin.

    Raises:
        EdgecError: the files do not belong together, or a sample does not fit.
    """
    from edgec.artifact import is_artifact, read_manifest
    from edgec.calibration import load_calibration
    from edgec.graph import load_graph
    from edgec.targets.formats import format_of

    if not is_artifact(quantised) and format_of(quantised) is None:
        floats, twin = (load_graph(path, shapes=shapes) for path in (model, quantised))
        return measure_layers(floats, twin, load_calibration(calib, floats, preprocess).samples, progress)
    _check_origin(model, quantised, read_manifest(quantised))
    floats = _companion_graphs(quantised)[0]
    return compare_artifact(quantised, load_calibration(calib, floats, preprocess).samples, progress)


def compare_artifact(artifact: Path, samples: Sequence[Sample], progress: Progress | None = None) -> LayerErrors:
    """As :func:`compare_layers`, of an artifact on ``samples``, by the models that stand beside it."""
    from edgec.artifact import read_manifest

    found = measure_layers(*_companion_graphs(artifact), samples, progress)
    on_host = read_manifest(artifact)["target"] == "host"
    return _with_times(found, artifact, companions(artifact)[1], samples[0]) if on_host else found


def _companion_graphs(artifact: Path) -> tuple[ir.Model, ir.Model]:
    """The models before and after the quantisation."""
    from edgec.graph import load_graph

    before, after = companions(artifact)[1:]
    for path in (before, after):
        if not path.is_file():
            raise EdgecError(
                f"'{path}' is not there, which edgec compile --quantize writes beside the artifact; compile again"
            )
    return load_graph(before), load_graph(after)


def _check_origin(model: Path, artifact: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse an artifact of another model."""
    try:
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
    except OSError as error:
        raise EdgecError(f"cannot read the model {model}: {error.strerror}") from error
    if manifest["model"]["sha256"] not in (None, digest):
        raise EdgecError(f"'{artifact}' was compiled from another model than '{model}'; give that one")


def _with_times(errors: LayerErrors, artifact: Path, floats: Path, sample: Sample) -> LayerErrors:
    """``errors`` with each layer's time in the artifact, and in the float model compiled for this machine."""
    from edgec.compiler import compile

    with tempfile.TemporaryDirectory(prefix="edgec-diff-") as folder:
        twin = compile(floats, "host", Path(folder) / "float.so")
        float_times = step_times(twin.path, sample)
        times = step_times(artifact, sample)
    total = sum(times.values())
    layers = tuple(
        replace(
            layer,
            microseconds=times.get(layer.name),
            time_share=times[layer.name] / total if layer.name in times else None,
            float_microseconds=float_times.get(layer.name),
        )
        for layer in errors.layers
    )
    return replace(errors, layers=layers)


def step_times(artifact: Path, sample: Sample) -> dict[str, float]:
    """Microseconds of every step of an artifact for this machine, by the first node that it computes."""
    from edgec.artifact import read_manifest
    from edgec.benchmark import profile_steps
    from edgec.compiler import manifest_path
    from edgec.data.samples import in_integers, specs

    nodes = json.loads(manifest_path(artifact).read_text(encoding="utf-8"))["nodes"]
    times: dict[str, float] = {}
    inputs = in_integers(specs(read_manifest(artifact)["inputs"]), sample)
    for names, step in zip(nodes, profile_steps(artifact, inputs), strict=True):
        times[names[0]] = times.get(names[0], 0.0) + step.min_ns / 1e3
    return times


def _layers(model: ir.Model, quantised: ir.Model) -> Iterator[_Layer]:
    twins = {str(node.name): node for node in quantised.graph}
    for node in model.graph:
        twin = twins.get(str(node.name))
        if twin is None or twin.op_type != node.op_type:
            continue
        pairs, weights = {}, {}
        for index, value in enumerate(node.inputs):
            source = input_of(twin, index)
            if value is None or source is None:
                continue
            if value.const_value is None:
                pair = _pair(source)
                if pair is not None:
                    pairs[index] = pair
            elif (constant := _dequantised(source)) is not None:
                weights[index] = constant
        if pairs or weights:
            yield _Layer(node, twin, pairs, weights, _bias(node, twins) if weights else None)


def _require_own_weights(layers: Sequence[_Layer]) -> None:
    """Refuse weights that are further from the float ones than zeros would be, which no quantiser makes of them."""
    for layer in layers:
        for index, array in layer.weights.items():
            own = constant_of(layer.node.inputs[index])
            if own is None or own.shape != array.shape or np.square(array - own).sum() > np.square(own).sum():
                owner = f"{layer.node.op_type} node '{layer.node.name}'"
                raise EdgecError(
                    f"the weights of {owner} differ too much from the float model's to be them, quantised: was it "
                    "changed before, its channels scaled against each other, say? Give the model "
                    "that was quantised; edgec compile writes it beside the artifact, as OUT.float.onnx"
                )


def _producer(value: ir.Value, op: str) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == op and node.domain == "" else None


def _pair(value: ir.Value) -> _Pair | None:
    node = _producer(value, "DequantizeLinear")
    if node is None or node.inputs[0] is None or node.inputs[0].const_value is not None:
        return None
    scale, zero = constant_of(node.inputs[1]), constant_of(input_of(node, 2))
    if scale is None or scale.size != 1:
        return None
    return _Pair(scale.reshape(()), (np.zeros((), np.uint8) if zero is None else zero.reshape(())))


def _dequantised(value: ir.Value) -> Array | None:
    """The constant of 8 bits or less that is made real; for biases, of 32 bits, see :func:`_bias`."""
    try:
        found = integer_weights(value)
    except Refused:
        return None
    return None if found is None else found.real


def _bias(node: ir.Node, twins: Mapping[str, ir.Node]) -> tuple[str, int, Array] | None:
    """The bias of a product in the quantised model, which takes up what its weights' errors shift."""
    product = product_of(node)
    if product is None or not product.can_have_bias:
        return None
    holder, index = product.bias_place
    twin = twins.get(str(holder.name))
    value = None if twin is None else input_of(twin, index)
    if value is None:
        return None
    found = constant_of(value)
    source = _producer(value, "DequantizeLinear")
    if source is not None:
        integers, scale = constant_of(source.inputs[0]), constant_of(source.inputs[1])
        found = None if integers is None or scale is None else (integers.astype(np.float64) * scale).astype(np.float32)
    return None if found is None else (str(holder.name), index, product.shaped_bias(found.reshape(-1)))


def _bits(layer: _Layer) -> str:
    if not layer.pairs:
        return "weights"
    return f"int{8 * max(pair.zero.dtype.itemsize for pair in layer.pairs.values())}"


def _with_layer(model: ir.Model, quantised: ir.Model, layer: _Layer, weights: bool, activations: bool) -> ir.Model:
    """The float model with one layer's weights, or what it reads, or both, on their grids."""
    copy = model.clone()
    copy.opset_imports[""] = quantised.opset_imports[""]
    copy.ir_version = max(copy.ir_version, quantised.ir_version)
    node = next(each for each in copy.graph if each.name == layer.node.name)
    if weights:
        for index, array in layer.weights.items():
            node.replace_input_with(index, new_constant(array, f"{node.name}_{index}_rounded", copy.graph))
    if weights and layer.bias is not None:
        name, index, array = layer.bias
        holder = next(each for each in copy.graph if each.name == name)
        if index >= len(holder.inputs):
            holder.resize_inputs(index + 1)
        holder.replace_input_with(index, new_constant(array, f"{name}_moved", copy.graph))
    for index, pair in layer.pairs.items() if activations else ():
        name = f"{node.name}_{index}"
        grid = [new_constant(array, f"{name}_grid", copy.graph) for array in (pair.scale, pair.zero)]
        first = ir.node("QuantizeLinear", [node.inputs[index], *grid], name=f"{name}_quantise")
        second = ir.node("DequantizeLinear", [first.outputs[0], *grid], name=f"{name}_dequantise")
        for made in (first, second):
            made.outputs[0].name = made.name
        copy.graph.insert_before(node, [first, second])
        node.replace_input_with(index, second.outputs[0])
    return copy


def _along(
    model: ir.Model, quantised: ir.Model, layers: Sequence[_Layer], samples: Collection[Sample]
) -> tuple[list[float], list[float]]:
    """For every layer the SQNR of its result in the quantised model, and the share of its reads that are clipped."""
    results = [(str(layer.node.outputs[0].name), str(layer.twin.outputs[0].name)) for layer in layers]
    sources = [str(layer.node.inputs[next(iter(layer.pairs), 0)].name) for layer in layers]  # type: ignore[union-attr]
    computed = [name for name in dict.fromkeys(sources) if name not in {str(v.name) for v in model.graph.inputs}]
    floats = ModelRunner(model, outputs=list(dict.fromkeys([*(name for name, _ in results), *computed])))
    twins = ModelRunner(quantised, outputs=list(dict.fromkeys(name for _, name in results)))
    powers, errors = np.zeros(len(layers)), np.zeros(len(layers))
    outside, counts = np.zeros(len(layers)), np.zeros(len(layers))
    for sample in samples:
        exact, found = floats.by_name(sample) | dict(sample), twins.by_name(sample)
        for index, layer in enumerate(layers):
            wanted = exact[results[index][0]].astype(np.float64)
            powers[index] += np.square(wanted).sum()
            errors[index] += np.square(found[results[index][1]] - wanted).sum()
            low, high = layer.limits
            if low is None or high is None:
                continue
            half = 0.5 * float(next(iter(layer.pairs.values())).scale)
            read = exact[sources[index]]
            outside[index] += ((read < low - half) | (read > high + half)).sum()
            counts[index] += read.size
    return [decibels(p, e) for p, e in zip(powers, errors, strict=True)], list(outside / np.maximum(counts, 1))


def _sqnr(found: Sequence[Sequence[Array]], wanted: Sequence[Sequence[Array]]) -> float:
    """Of all outputs of all runs together, in dB."""
    return signal_to_noise([each for run in found for each in run], [each for run in wanted for each in run])
