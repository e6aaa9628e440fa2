"""Resolution: a convolutional network computes on a smaller image, without training.

The image that the model is given keeps its shape; a bilinear Resize in front makes it smaller. Networks that end in a
mean over positions take images of any size, and most of what they recognise does not hang on the last pixels (how
accuracy and MACs go with the resolution: Howard et al. 2017). What differs is how strongly features show behind the
mean, since objects are smaller and borders nearer (Touvron et al. 2019): where positions end, each value is scaled
and shifted by least squares to what the original has there. The folds take that into the weights behind.

The image keeps its proportions as far as every map stays whole: sizes go down in steps of what the strides divide
by, and the largest one that saves enough is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError, Refusal
from edgec.frontend.shapes import forget_shapes, infer_shapes
from edgec.frontend.values import shape_of
from edgec.passes.base import Pass
from edgec.passes.prune.activations import Sample, capture, outputs
from edgec.passes.prune.cost import Cost, attainable
from edgec.passes.rewriting import new_constant

FLOOR = 0.5
"""The share of its height and of its width that an image keeps at least."""

_FITTED = 256
"""Samples that scales are fitted to, at most."""

Size = tuple[int, int]
"""Height and width."""


class ReduceResolution(Pass):
    """Makes the image smaller until a share of the MACs is saved."""

    name: ClassVar[str] = "reduce-resolution"

    def __init__(self, fraction: float, samples: Sequence[Sample]) -> None:
        if not 0 <= fraction < 1:
            raise EdgecError(f"--pixels {fraction:g} is no share to remove; give one from 0 to below 1")
        if not samples:
            raise EdgecError("--pixels fits the model for smaller images to samples; give it some with --calib")
        self.fraction = fraction
        self._samples = samples[:_FITTED]
        self.size: Size | None = None

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        image = _image(model)
        self.size = self._find_size(model, image)
        if self.size == shape_of(image)[2:]:
            return 0, ()
        self._shrink(model, self.size)
        return 1, ()

    def _find_size(self, model: ir.Model, image: ir.Value) -> Size:
        """The largest size that saves enough.

        Raises:
            EdgecError: the model cannot compute on smaller images, or so much cannot be saved; says how much could.
        """
        whole = macs = Cost(model, "macs").total
        for size in _sizes(model, image):
            copy = model.clone()
            shrink_image(copy, size)
            macs = Cost(copy, "macs").total
            if macs <= whole * (1 - self.fraction):
                return size
        least = attainable(1 - macs / whole)
        raise EdgecError(
            f"{self.fraction:.1%} of the MACs cannot be saved by smaller images: at most {least:.1%} can; "
            f"ask for --pixels {least:g} or less"
        )

    def _shrink(self, model: ir.Model, size: Size) -> None:
        """Let ``model`` compute on images of ``size``, and fit the values where positions end."""
        original = model.clone()
        shrink_image(model, size)
        names = [str(value.name) for value in _ends(model, original)]
        ours, theirs = (list(capture(each, names, self._samples)) for each in (model, original))
        for value in _ends(model, original):
            found, wanted = (np.stack([each[str(value.name)] for each in side]) for side in (ours, theirs))
            _insert(model, value, _fit(found, wanted))
        infer_shapes(model)


@dataclass(frozen=True)
class _Fit:
    """What a value is multiplied by, and what is added then: in its shape and dtype."""

    slope: np.ndarray
    shift: np.ndarray


def _image(model: ir.Model) -> ir.Value:
    """The only input, [batch, channels, height, width] of floats."""
    inputs = model.graph.inputs
    if len(inputs) != 1 or len(shape_of(inputs[0])) != 4 or inputs[0].dtype != ir.DataType.FLOAT:
        raise EdgecError(
            "--pixels makes an image smaller, and this model's input is not one image [batch, channels, height, "
            "width] of floats; leave --pixels out"
        )
    return inputs[0]


def _sizes(model: ir.Model, image: ir.Value) -> Iterator[Size]:
    """The image's size and smaller ones of nearly its proportions, in steps of what its axes are divided by."""
    (height, width), maps = shape_of(image)[2:], _map_sizes(model)
    down, across = (
        max(1, extent // min((each[axis] for each in maps if each[axis] > 1), default=extent))
        for axis, extent in enumerate((height, width))
    )
    for lower in range(0, height - int(np.ceil(FLOOR * height)) + 1, down):
        yield height - lower, width - round(lower * width / (height * across)) * across


def _map_sizes(model: ir.Model) -> list[Size]:
    return [
        (shape[2], shape[3])
        for node in model.graph
        for shape in (shape_of(value) for value in node.outputs)
        if len(shape) == 4
    ]


def shrink_image(model: ir.Model, size: Size) -> None:
    """Put a Resize to ``size`` behind the image, in place.

    Raises:
        EdgecError: the model does not run so, or its outputs get other shapes.
    """
    graph, image = model.graph, model.graph.inputs[0]
    shape = shape_of(image)
    if size == shape[2:]:
        return
    before = [shape_of(value) for value in graph.outputs]
    sizes = new_constant(np.array([*shape[:2], *size], np.int64), "smaller_size", graph)
    resize = ir.node("Resize", [image, None, None, sizes], {"mode": "linear"}, name="smaller_image")
    resize.outputs[0].name = "smaller_image"
    image.replace_all_uses_with(resize.outputs[0])
    resize.replace_input_with(0, image)
    graph.insert_before(graph[0], resize)
    forget_shapes(model)
    try:
        infer_shapes(model)
        found = outputs(model, [{str(image.name): np.zeros(shape, np.float32)}])
        fits = [each.shape[1:] for each in found] == before
    except Exception:  # ONNX Runtime's exceptions have no common base class
        fits = False
    if not fits:
        raise EdgecError(
            f"this model cannot compute on a smaller image than {shape[2]} x {shape[3]}: its outputs, or constants in "
            "it, have the image's positions; leave --pixels out"
        )


def _ends(model: ir.Model, original: ir.Model) -> list[ir.Value]:
    """The values whose shape is the original's although what they are computed from has another."""
    before = {value.name: value.shape for node in original.graph for value in node.outputs}
    changed = {value for node in model.graph for value in node.outputs if before.get(value.name) != value.shape}
    return [
        node.outputs[0]
        for node in model.graph
        if node.outputs[0] not in changed
        and node.outputs[0].dtype == ir.DataType.FLOAT
        and changed.intersection(node.inputs)
    ]


def _fit(found: np.ndarray, wanted: np.ndarray) -> _Fit:
    """Slope and shift of each value by least squares over the samples, the first axis.

    Slopes are held to 1 as if by one more sample, whose values vary and agree as all do on average.
    """
    x, y = found.astype(np.float64), wanted.astype(np.float64)
    about, goal = x.mean(axis=0), y.mean(axis=0)
    variance = x.var(axis=0)
    held = variance.mean() / len(x) + 1e-12
    slope = (((x - about) * (y - goal)).mean(axis=0) + held) / (variance + held)
    return _Fit(slope.astype(found.dtype), (goal - slope * about).astype(found.dtype))


def _insert(model: ir.Model, value: ir.Value, fit: _Fit) -> None:
    """Let everything that reads ``value`` read it scaled and shifted, under its name."""
    graph, producer, name = model.graph, value.producer(), str(value.name)
    assert producer is not None
    scaled = ir.node("Mul", [value, new_constant(fit.slope, f"{name}_slope", graph)], name=f"{name}_scaled")
    shifted = ir.node("Add", [scaled.outputs[0], new_constant(fit.shift, f"{name}_shift", graph)], name=f"{name}_fit")
    value.replace_all_uses_with(shifted.outputs[0], replace_graph_outputs=True)
    scaled.replace_input_with(0, value)
    value.name, scaled.outputs[0].name, shifted.outputs[0].name = f"{name}_smaller", f"{name}_scaled", name
    graph.insert_after(producer, [scaled, shifted])
