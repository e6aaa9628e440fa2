"""The recipe of a quantisation as a file: commented TOML, written beside the artifact, read back with ``--recipe``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.data.toml_files import read_settings
from edgec.errors import EdgecError
from edgec.passes.quantize.recipe import GROUP_SIZES, OBSERVERS, PRECISIONS, ROUNDINGS, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.passes.quantize import LayerQuantization

_CHOICES: dict[str, Sequence[str | int]] = {
    "observer": OBSERVERS, "rounding": ROUNDINGS, "group_size": GROUP_SIZES, "default": tuple(PRECISIONS),
}  # fmt: skip

_COMMENTS = {
    "observer": f"where ranges of activations come from: {', '.join(OBSERVERS)}",
    "equalise": "scale channels of neighbouring layers against each other where that lowers the error",
    "correct_bias": "move biases by the mean error that quantisation causes",
    "rounding": f"of weights: {', '.join(ROUNDINGS)}",
    "refine": "adjust the scales of activations to the change of the network's prediction",
    "group_size": "weights of less than 8 bits that share a scale where activations are float: "
    f"{', '.join(map(str, GROUP_SIZES))}; 0 is a whole output channel",
    "salient_groups": "share of them that have 4 bits instead of 2 or 3, 8 instead of 4, where it is worth most",
    "factors": "multiply groups of weights of 4 bits under integer activations by integers of their own",
    "keep": "share of the weights of 4 bits under integer activations that keeps 8 bits, where it is worth most; "
    "auto: as little as the prediction needs",
    "wide_sums": "16 bits for what a convolution hands to a sum alone, for next to nothing where both are fused",
    "fixed_point": "scales are powers of two, for processors without a float unit",
    "default": "of layers that are not named below",
}


def write_recipe(
    recipe: Recipe, layers: Sequence[LayerQuantization], reasons: Mapping[str, str] | None = None, verdict: str = ""
) -> str:
    """``recipe`` with the precision that each of ``layers`` was given, and what was found of it, as TOML.

    Args:
        recipe: the choices.
        layers: of the quantised model.
        reasons: why some of them have their precision, by name.
        verdict: what the model loses, where that was measured.
    """
    reasons = reasons or {}
    lines = [
        "# How the model was quantised. Change a line and compile again with --recipe and this file.",
        *([f"# {verdict}"] if verdict else []),
        "",
        *(f"{name} = {json.dumps(getattr(recipe, name))}  # {comment}" for name, comment in _COMMENTS.items()),
        "",
        "# int8; int16: activations of 16 bits, weights of 8; w4a8: of 8, of 4; w8, w4, w3, w2: only weights; or float",
        "# p2, p1: as int8, each weight a sum of two powers of two, or one",
        "[layers]",
    ]
    for layer in layers:
        if layer.tensors or layer.name in recipe.layers:
            why = f"; {reasons[layer.name]}" if layer.name in reasons else ""
            lines.append(f"{json.dumps(layer.name, ensure_ascii=False)} = {json.dumps(layer.bits)}  # {layer.op}{why}")
            lines += [f"#   {tensor}" for tensor in layer.tensors]
    return "\n".join(lines) + "\n"


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        EdgecError: the file cannot be read, or a key or its value is not one of a recipe's.
    """
    values = read_settings(path, [field.name for field in fields(Recipe)])
    return Recipe(**{key: _value(path, key, value) for key, value in values.items()})


def _value(path: Path, key: str, value: Any) -> Any:
    if key in _CHOICES:
        return _choice(path, key, value, _CHOICES[key])
    if key in ("keep", "salient_groups"):
        if value == "auto" and key == "keep":
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        allowed = "auto or a share" if key == "keep" else "a share"
        raise EdgecError(f"the recipe '{path}' has {key} = {value!r}; it must be {allowed} from 0 to 1")
    if key != "layers":
        if isinstance(value, bool):
            return value
        raise EdgecError(f"the recipe '{path}' has {key} = {value!r}; it must be true or false")
    if not isinstance(value, dict):
        raise EdgecError(f"the recipe '{path}' has layers = {value!r}; it must be a table of names and precisions")
    return {name: _choice(path, f"layer '{name}'", bits, tuple(PRECISIONS)) for name, bits in value.items()}


def _choice(path: Path, key: str, value: Any, choices: Sequence[str | int]) -> str | int:
    if value not in choices or isinstance(value, bool):
        listing = ", ".join(map(str, choices))
        raise EdgecError(f"the recipe '{path}' has {value!r} for {key}; it must be one of {listing}")
    return value  # type: ignore[no-any-return]


def check_layers(recipe: Recipe, model: ir.Model) -> None:
    """Refuse names of layers that ``model``, as the passes leave it, does not have.

    Raises:
        EdgecError: with the nearest name.
    """
    names = [str(node.name) for node in model.graph]
    for name in recipe.layers:
        if name not in names:
            raise EdgecError(f"the recipe names the layer '{name}', which the model does not have{_hint(name, names)}")


def _hint(name: str, names: Sequence[str]) -> str:
    near: Iterator[str] = iter(difflib.get_close_matches(name, names, 1))
    found = next(near, None)
    return "" if found is None else f"; did you mean '{found}'?"
