"""Choosing foldings: as many frames a second as a board can hold, or a goal with as little as possible.

For an interval T (cycles between frames) every layer takes its cheapest folding that is done in T cycles, where cheap
is the sum of what it takes of each kind as a share of the board. Products move from DSP slices to lookup tables where
slices run out, and weights that are read once a frame move to DDR memory where block memories run out. The smallest T
whose design fits is found by bisection over the intervals that foldings can have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import floor

from edgec.errors import EdgecError
from edgec.targets.fpga.board import Board, board_names, load_board
from edgec.targets.fpga.dataflow import Dataflow, build
from edgec.targets.fpga.estimate import Estimate, estimate, layer_resources
from edgec.targets.fpga.folding import Folding, lane_choices, layer_steps, streamable
from edgec.targets.fpga.layers import Layer, WeightedLayer
from edgec.targets.fpga.network import Network
from edgec.targets.fpga.resources import Resources


@dataclass(frozen=True)
class Design:
    """Foldings by layer name, the dataflow they make, and its estimate."""

    foldings: dict[str, Folding]
    flow: Dataflow
    estimate: Estimate


@dataclass(frozen=True)
class _Option:
    folding: Folding
    steps: int
    cost: float


def solve(network: Network, board: Board, fps: float | None = None) -> Design:
    """The fastest design that fits ``board``, or the smallest that reaches ``fps`` frames a second.

    Raises:
        EdgecError: nothing fits, or the goal cannot be reached; with what is nearest.
    """
    solver = _Solver(network, board)
    fastest = solver.fastest()
    if fastest is None:
        raise EdgecError(_too_large(solver))
    if fps is None:
        return fastest
    design = solver.within(floor(board.clock_mhz * 1e6 / fps))
    if design is None:
        raise EdgecError(_too_fast(network, board, fps, fastest))
    return design


class _Solver:
    def __init__(self, network: Network, board: Board) -> None:
        self.network, self.board, self.budget = network, board, board.budget

    @cached_property
    def options(self) -> dict[str, list[_Option]]:
        """Every folding of every layer with DSP slices, cheapest first."""
        return {
            layer.name: sorted((self._option(layer, *lanes) for lanes in lane_choices(layer)), key=lambda x: x.cost)
            for layer in self.network.layers
        }

    def _option(self, layer: Layer, simd: int, pe: int) -> _Option:
        folding = Folding(simd, pe)
        return _Option(folding, layer_steps(layer, folding), self._cost(layer_resources(layer, folding)))

    def _cost(self, used: Resources) -> float:
        return sum(part / max(there, 1) for part, there in zip(used, self.budget, strict=True))

    def fastest(self) -> Design | None:
        """The design of the smallest interval that fits; None if none does."""
        intervals = sorted({option.steps for options in self.options.values() for option in options})
        slowest = max(min(option.steps for option in options) for options in self.options.values())
        intervals = [steps for steps in intervals if steps >= slowest]
        low, high, best = 0, len(intervals), None
        while low < high:
            middle = (low + high) // 2
            design = self.at(intervals[middle])
            if design is None:
                low = middle + 1
            else:
                best, high = design, middle
        return best

    def within(self, interval: int) -> Design | None:
        """A design that takes a frame every ``interval`` cycles and fits."""
        if any(min(option.steps for option in options) > interval for options in self.options.values()):
            return None
        design = self.at(interval)
        return design if design is not None and design.flow.interval <= interval else None

    def at(self, interval: int) -> Design | None:
        """The cheapest design whose layers are done in ``interval`` cycles, if it fits."""
        design = self.cheapest(interval)
        if not design.estimate.total.fits(self.budget):
            design = self._relieved(design, interval)
        return design if design.estimate.total.fits(self.budget) else None

    def cheapest(self, interval: int) -> Design:
        """Every layer's cheapest folding, whether or not they fit together."""
        foldings = {
            name: next(option.folding for option in options if option.steps <= interval)
            for name, options in self.options.items()
        }
        return self._design(foldings)

    def _design(self, foldings: dict[str, Folding]) -> Design:
        flow = self._flow(foldings)
        return Design(foldings, flow, estimate(self.network, foldings, flow))

    def _relieved(self, design: Design, interval: int) -> Design:
        """Weights to DDR memory while block memories lack, then products to lookup tables while slices lack."""
        foldings = dict(design.foldings)
        used = design.estimate.total
        for layer in self._by_blocks(foldings):
            moved = replace(foldings[layer.name], streamed=True)
            if used.bram18 <= self.budget.bram18 or not self._in_time({**foldings, layer.name: moved}, interval):
                continue
            used = used + layer_resources(layer, moved) - layer_resources(layer, foldings[layer.name])
            foldings[layer.name] = moved
        self._into_tables(foldings, used)
        return self._design(foldings)

    def _into_tables(self, foldings: dict[str, Folding], used: Resources) -> None:
        """Move products to lookup tables until slices suffice, then back what was moved too much, in ``foldings``."""
        moved: list[tuple[Layer, Folding, Resources]] = []
        for layer, choice in self._by_tables(foldings):
            if used.dsp <= self.budget.dsp:
                break
            change = layer_resources(layer, choice) - layer_resources(layer, foldings[layer.name])
            moved.append((layer, foldings[layer.name], change))
            used, foldings[layer.name] = used + change, choice
        for layer, before, change in sorted(moved, key=lambda each: -each[2].lut):
            if used.dsp - change.dsp <= self.budget.dsp:
                used, foldings[layer.name] = used - change, before

    def _in_time(self, foldings: dict[str, Folding], interval: int) -> bool:
        return self._flow(foldings).interval <= interval

    def _flow(self, foldings: dict[str, Folding]) -> Dataflow:
        return build(self.network, foldings, self.board.beats_per_cycle, self.budget.uram)

    def _by_blocks(self, foldings: dict[str, Folding]) -> list[Layer]:
        """Layers whose weights can come from DDR memory, those that free most block memories first."""
        layers = [layer for layer in self.network.layers if streamable(layer)]
        return sorted(layers, key=lambda layer: -layer_resources(layer, foldings[layer.name]).bram18)

    def _by_tables(self, foldings: dict[str, Folding]) -> list[tuple[Layer, Folding]]:
        """Layers with their cheapest multiplier in lookup tables, those that take fewest for a slice first."""
        ranked: list[tuple[float, int, Layer, Folding]] = []
        for layer in self.network.layers:
            folding = foldings[layer.name]
            if not isinstance(layer, WeightedLayer) or folding.streamed:
                continue
            choices = [replace(folding, multiplier=each) for each in ("lut", "shift")]
            moved = min(choices, key=lambda choice: layer_resources(layer, choice).lut)
            change = layer_resources(layer, moved) - layer_resources(layer, folding)
            ranked.append((change.lut / max(-change.dsp, 1), len(ranked), layer, moved))
        return [(layer, moved) for _, _, layer, moved in sorted(ranked, key=lambda each: each[:2])]


def _too_large(solver: _Solver) -> str:
    """What lacks, which layer takes most of it, and where the model fits."""
    network, board, budget = solver.network, solver.board, solver.budget
    slowest = max(option.steps for options in solver.options.values() for option in options)
    design = solver._relieved(solver.cheapest(slowest), slowest)
    used = design.estimate.total
    kind = max(Resources.names(), key=lambda name: getattr(used, name) / max(getattr(budget, name), 1))
    worst = max(design.estimate.layers, key=lambda layer: getattr(layer, kind))
    boards = [name for name in board_names() if _fits(network, name)]
    share = getattr(budget, kind) / getattr(used, kind)
    smaller = f"prune it to {share:.0%} of its weights, or quantise them to as many fewer bits"
    way = f"compile it for {' or '.join(boards)}" if boards else smaller
    return (
        f"'{network.name}' does not fit {board.name}: its smallest design takes {getattr(used, kind):,} {kind} of "
        f"{getattr(budget, kind):,}, {getattr(worst, kind):,} of them for node '{worst.node}'; {way}"
    )


def _fits(network: Network, name: str) -> bool:
    solver = _Solver(network, load_board(name))
    return solver.at(max(option.steps for options in solver.options.values() for option in options)) is not None


def _too_fast(network: Network, board: Board, fps: float, fastest: Design) -> str:
    """The nearest goal that can be reached, the layer that stands in the way, and a board that is faster."""
    most = board.frames(fastest.flow.interval)
    slowest = max(fastest.estimate.layers, key=lambda layer: layer.cycles)
    others = [load_board(name) for name in board_names() if name != board.name]
    reached = [(other.name, _Solver(network, other).fastest()) for other in others]
    faster = [name for (name, design), other in zip(reached, others, strict=True)
              if design is not None and other.frames(design.flow.interval) >= fps]  # fmt: skip
    way = f", or compile it for {' or '.join(faster)}" if faster else ""
    return (
        f"'{network.name}' cannot reach {fps:,.0f} frames/s on {board.name}: {most:,.0f} are the most that fit, where "
        f"node '{slowest.node}' takes {slowest.cycles:,} cycles a frame; ask for --fps {floor(most)}{way}"
    )
