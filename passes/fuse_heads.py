"""Take the class of each pixel before enlarging, not after.

A segmentation head enlarges the scores of all classes and then takes the largest per pixel. Mode nearest
copies: output pixel p is input pixel i(p), the same i for every class, so

    argmax_c Resize(x)[c, p] = argmax_c x[c, i(p)] = Resize(argmax_c x)[p]

exactly, ties included, and the right side enlarges one plane instead of one a class. For linear and cubic
modes this does not hold: a mean of scores can have its largest class where no neighbour has.

Classes travel through the Resize as int32, since ONNX Runtime resizes no int64.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.fuse import FusePass, Match, initializer, producer
from edgec.passes.rewriting import Refused


class FuseHeads(FusePass):
    """Moves ArgMax and ArgMin before the Resize that they read."""

    name: ClassVar[str] = "fuse-heads"

    def match(self, model: ir.Model, node: ir.Node) -> Match | None:
        resize = producer(node.inputs[0], "Resize") if node.op_type in ("ArgMax", "ArgMin") else None
        if resize is None:
            return None
        before, after = shape_of(resize.inputs[0]), shape_of(resize.outputs[0])
        axis = node.attributes.get_int("axis", 0) % len(after)
        if before[axis] != after[axis] or np.prod(after) <= np.prod(before):
            return None
        _require_copies(resize)
        return Match(f"{node.op_type} before Resize", [resize], lambda: _swapped(model, node, resize, axis))


def _require_copies(resize: ir.Node) -> None:
    mode = resize.attributes.get_string("mode", "nearest")
    if mode != "nearest":
        raise Refused(
            f"Resize '{resize.name}' interpolates ({mode}), so the class of a mean is not the mean of classes"
        )
    if resize.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Refused(f"Resize '{resize.name}' crops, and fills what lies outside with a value that is no class")
    if resize.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused(f"Resize '{resize.name}' derives its sizes from each other (keep_aspect_ratio_policy)")


def _swapped(model: ir.Model, chosen: ir.Node, resize: ir.Node, axis: int) -> list[ir.Node]:
    name = chosen.name
    attributes = {**chosen.attributes, "keepdims": ir.AttrInt64("keepdims", 1)}
    classes = ir.node(chosen.op_type, resize.inputs[:1], attributes, name=name)
    narrow = ir.node("Cast", classes.outputs, {"to": ir.DataType.INT32}, name=f"{name}_narrow")
    inputs = [*narrow.outputs, None, *resize.inputs[2:3], *_sizes(model, chosen, resize, axis)]
    large = ir.node("Resize", inputs, dict(resize.attributes), name=resize.name)
    wide = ir.node("Cast", large.outputs, {"to": ir.DataType.INT64}, name=f"{name}_wide")
    nodes = [classes, narrow, large, wide]
    if not chosen.attributes.get_int("keepdims", 1):
        axes = initializer(model, f"{name}_axes", np.array([axis], np.int64))
        nodes.append(ir.node("Squeeze", [wide.outputs[0], axes], name=f"{name}_squeeze"))
    return nodes


def _sizes(model: ir.Model, chosen: ir.Node, resize: ir.Node, axis: int) -> list[ir.Value]:
    """The sizes input, where the node has one, with 1 class left."""
    sizes = constant_of(input_of(resize, 3))
    if sizes is None:
        return []
    axes = resize.attributes.get_ints("axes", range(len(sizes)))
    rank = len(shape_of(resize.inputs[0]))
    left = [1 if each % rank == axis else int(size) for each, size in zip(axes, sizes, strict=True)]
    return [initializer(model, f"{chosen.name}_sizes", np.array(left, np.int64))]
