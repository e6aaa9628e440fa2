"""Mixed precision: which bits each layer gets, as an exact integer program over what was measured.

Every product of the model is tried at every precision of a family: one with integer activations (w4a8, int8, float),
one with float activations (w2, w3, w4, w8, float). Each is learned once; the loss of an option is how far the float
model's prediction moves with that layer alone quantised; its cost are the bytes of its weights and, on this machine,
the time of its kernel. Losses of layers add up, near enough. Then

* ``most_bytes`` or ``most_ms``: the choice of least loss within them;
* ``most_drop``: the choice of fewest bytes with which no more points are lost on samples that were not learned from,
  found by bisection over the loss that the program may spend.

The best of three is taken: both families together, where a layer of few bits and float activations may stand between
layers of integers, and each alone. Points are counted of models that are put together from the layers as they were
tried; a quantisation by the choice is judged anew, by :func:`edgec.quantisation.guard.guard`, which goes on to
:meth:`Mix.gentler` ones where it loses more. Layers whose choice was fixed in a recipe keep it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError
from edgec.passes.quantize import Recipe
from edgec.passes.quantize.assembly import Assembly
from edgec.passes.quantize.execution import Sample
from edgec.passes.quantize.lowbit import WIDER
from edgec.passes.quantize.operators import weight_axis
from edgec.passes.quantize.products import Product, product_of
from edgec.passes.quantize.recipe import PRECISIONS
from edgec.quantisation.judge import Judge
from edgec.quiet import quiet

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[str, int, int], None]

FAMILIES: Mapping[str, Sequence[str]] = {"int8": ("w4a8", "int8", "float"), "w8": ("w2", "w3", "w4", "w8", "float")}
"""By the precision of what has no weights: what layers can be given."""

DEFAULT_DROP = 1.0
"""Points that may be lost where no limit is given."""

_SAMPLES = 16
_BISECTIONS = 8
_GENTLER = (2.0, 8.0, 64.0)
"""By how much the choices that are tried after the first have less loss, before that without any."""


@dataclass(frozen=True)
class Limits:
    """What must hold: one of the three."""

    most_drop: float | None = None
    most_ms: float | None = None
    most_bytes: int | None = None


@dataclass(frozen=True)
class Option:
    """A layer at a precision.

    Attributes:
        layer: the node's name.
        precision: see :data:`edgec.passes.quantize.recipe.PRECISIONS`.
        loss: change of the prediction with this layer alone quantised; see :meth:`Judge.distance_of`.
        bytes: of its weights and their scales.
        ms: of its kernel on this machine; None where that is not what is built for.
        chosen: whether it was.
    """

    layer: str
    precision: str
    loss: float
    bytes: int
    ms: float | None
    chosen: bool = False


@dataclass(frozen=True)
class Mix:
    """What was chosen, of which options.

    Attributes:
        default: the precision of what is no product.
        options: all of them.
        rest_ms: the time of what is no product; None where nothing was timed.
    """

    default: str
    options: tuple[Option, ...]
    rest_ms: float | None

    @property
    def bytes(self) -> int:
        """Of the weights of the choice and their scales."""
        return sum(option.bytes for option in self._taken)

    @property
    def ms(self) -> float | None:
        """Of the choice and of what is no product; None where nothing was timed."""
        return None if self.rest_ms is None else self.rest_ms + sum(option.ms or 0.0 for option in self._taken)

    @property
    def loss(self) -> float:
        """Of the choice: the sum of its layers'."""
        return sum(option.loss for option in self._taken)

    @property
    def chosen(self) -> dict[str, str]:
        """Precision by layer."""
        return {option.layer: option.precision for option in self._taken}

    @property
    def _taken(self) -> list[Option]:
        return [option for option in self.options if option.chosen]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        options = [asdict(option) for option in self.options]
        return {"default": self.default, "options": options, "bytes": self.bytes, "ms": self.ms}

    def recipe(self, base: Recipe) -> Recipe:
        """``base`` with the choice."""
        return replace(base, default=self.default, layers={**base.layers, **self.chosen})

    def changed(self, layers: Mapping[str, str]) -> Mix:
        """With the precisions of ``layers``, which are among the options."""
        wanted = {**self.chosen, **layers}
        taken = (replace(each, chosen=wanted[each.layer] == each.precision) for each in self.options)
        return replace(self, options=tuple(taken))

    def gentler(self) -> Iterator[Mix]:
        """The smallest choices of less and less loss, down to none at all."""
        for room in (*(self.loss / each for each in _GENTLER), 0.0):
            if (made := _solved(self, "bytes", lambda option: option.loss, room)) is not None:
                yield made


def mix(
    graph: ir.Model, samples: Sequence[Sample], judge: Judge | None, recipe: Recipe, limits: Limits, here: bool,
    families: Sequence[str], tell: Progress,
) -> Mix:  # fmt: skip
    """Choose the precision of every product of ``graph``.

    Args:
        graph: the float model.
        samples: to learn from.
        judge: counts points for ``most_drop``, on other samples; None where that is not the limit.
        recipe: its layers keep the precision that it gives them.
        limits: what must hold.
        here: whether kernels can be timed: the model is compiled for this machine.
        families: those of :data:`FAMILIES` that the target has kernels for.
        tell: told (what, done, total).

    Raises:
        EdgecError: no choice is within the limits.
    """
    if limits.most_ms is not None and not here:
        raise EdgecError("--max-ms takes times that are measured here, for --target host; give --max-bytes instead")
    assembly = Assembly(graph, samples, replace(recipe, default=families[0]), tell)
    measured = [_measure(assembly, samples, replace(recipe, default=each), here, tell) for each in families]
    if len(measured) > 1:
        measured.insert(0, _joined(measured))
    if judge is None:
        found = [made for each in measured if (made := _within(each, limits)) is not None]
        best = min(found, key=lambda made: made.loss, default=None)
    else:
        assert limits.most_drop is not None
        most = limits.most_drop

        def drop(made: Mix) -> float:
            return judge.steady_drop_of(assembly.mixed(made.recipe(recipe)))

        found = [made for each in measured if (made := _bisect(each, most, drop, tell)) is not None]
        best = min(found, key=lambda made: made.bytes, default=None)
    if best is None:
        raise EdgecError(f"no mix of precisions is within {_said(limits)}; allow more")
    return best


def _said(limits: Limits) -> str:
    if limits.most_ms is not None:
        return f"--max-ms {limits.most_ms:g}"
    return f"--max-bytes {limits.most_bytes}" if limits.most_bytes is not None else f"--max-drop {limits.most_drop:g}"


# ---- measuring ------------------------------------------------------------------------------------------------


def _measure(assembly: Assembly, samples: Sequence[Sample], recipe: Recipe, here: bool, tell: Progress) -> Mix:
    """Every layer at every precision of the recipe's default family."""
    few = list(samples)[:: -(-len(samples) // _SAMPLES)]
    judge = Judge.of(assembly.model, few, None)
    products = {str(node.name): product for node in assembly.model.graph if (product := product_of(node)) is not None}
    options: list[Option] = []
    float_times = _times(assembly.model, few[0]) if here else None
    rest = None if float_times is None else sum(ms for name, ms in float_times.items() if name not in products)
    for precision in FAMILIES[recipe.default]:
        tried = [name for name in products if recipe.layers.get(name, precision) == precision]
        bits, times = assembly.weight_bits(precision), float_times
        if here and precision != "float":
            times = _times(assembly.mixed(replace(recipe, default=precision, layers={})), few[0])
        for done, name in enumerate(tried, 1):
            loss = 0.0
            if name in bits:
                alone = assembly.mixed(replace(recipe, default="float", layers={name: precision}))
                loss = judge.distance_of(alone)
            size = _weight_bytes(products[name], precision, bits.get(name), recipe)
            options.append(Option(name, precision, loss, size, None if times is None else times.get(name, 0.0)))
            tell(f"layers at {precision}", done, len(tried))
    return Mix(recipe.default, tuple(options), rest)


def _joined(families: Sequence[Mix]) -> Mix:
    """The options of all ``families``, for a model whose rest is as in the first."""
    options = {(each.layer, each.precision): each for family in families for each in family.options}
    return Mix(families[0].default, tuple(options.values()), families[0].rest_ms)


def _weight_bytes(product: Product, precision: str, bits: int | None, recipe: Recipe) -> int:
    """Bytes of the weights and of their scales, where those of ``precision`` have ``bits``; None: they are floats."""
    elements = product.weight.size
    if bits is None:
        return 4 * elements
    outputs = product.weight.shape[weight_axis(product.node)]
    if PRECISIONS[precision].activations is not None or bits == 8:
        shared = product.factor_group if bits == 4 and recipe.factors else 0
        factors = outputs * -(-elements // outputs // shared) if shared else 0
        return -(-elements * bits // 8) + 4 * outputs + factors
    group = product.group_size(recipe.group_size)
    groups = -(-elements // outputs // group)
    salient = round(recipe.salient_groups * groups) if product.mixes_widths(group) else 0
    more = salient * group * outputs * (WIDER[bits] - bits)
    return -(-(elements * bits + more) // 8) + 2 * outputs * groups


def _times(model: ir.Model, sample: Sample) -> dict[str, float]:
    """Milliseconds of each layer's kernels on this machine, by the first node that a kernel computes."""
    import onnx_ir as ir

    from edgec.compiler import compile
    from edgec.quantisation.layer_errors import step_times

    with tempfile.TemporaryDirectory(prefix="edgec-mix-") as folder:
        made = compile(ir.to_proto(model), "host", Path(folder) / "model.so")
        return {name: us / 1e3 for name, us in step_times(made.path, sample).items()}


# ---- choosing -------------------------------------------------------------------------------------------------


def _within(measured: Mix, limits: Limits) -> Mix | None:
    """The least loss within bytes or milliseconds; None where nothing is."""
    if limits.most_ms is not None:
        room = limits.most_ms - (measured.rest_ms or 0.0)
        return _solved(measured, "loss", lambda option: option.ms or 0.0, room)
    assert limits.most_bytes is not None
    return _solved(measured, "loss", lambda option: option.bytes, limits.most_bytes)


def _bisect(measured: Mix, most: float, drop: Callable[[Mix], float], tell: Progress) -> Mix | None:
    """The smallest choice found whose drop is at most ``most`` points; None where none is."""
    largest: dict[str, float] = {}
    for option in measured.options:
        largest[option.layer] = max(largest.get(option.layer, 0.0), option.loss)
    low, high = 0.0, sum(largest.values())
    found: Mix | None = None
    for step in range(_BISECTIONS + 1):
        room = high if step == 0 else float(np.sqrt(max(low, 1e-4 * high) * high))
        made = _solved(measured, "bytes", lambda option: option.loss, room)
        tell("precisions", step, _BISECTIONS)
        if made is None:
            break
        if drop(made) > most:
            high = room
            continue
        found, low = made, room
        if step == 0:
            break
    return found


def _solved(measured: Mix, goal: str, cost: Callable[[Option], float], room: float) -> Mix | None:
    """The choice of least total ``goal`` ("loss" or "bytes") with a total ``cost`` of at most ``room``."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    options = measured.options
    layers = list(dict.fromkeys(option.layer for option in options))
    one_each = np.array([[float(option.layer == layer) for option in options] for layer in layers])
    costs = np.array([[cost(option) for option in options]])
    scale = max(float(np.abs(costs).max()), 1e-30)
    values = np.array([getattr(option, goal) for option in options], np.float64)
    with quiet():  # HiGHS prints a line where it solves again with rounded numbers, in the middle of the results
        found = milp(
            values / max(float(values.max()), 1e-30),
            integrality=np.ones(len(options)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs / scale, -np.inf, room / scale)],
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        return None
    chosen = (replace(option, chosen=bool(x > 0.5)) for option, x in zip(options, found.x, strict=True))
    return replace(measured, options=tuple(chosen))
