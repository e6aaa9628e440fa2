"""Weights of 2, 3 and 4 bits: integers and scales that change a product's results on real inputs least.

A row of weights w [depth] has one scale for each group of neighbours. With the second moment H of the patches, integers
q and scales s cost (w − s·q)·H·(w − s·q)ᵀ. Four methods lower that, each from where the one before it stopped:

* clipping: the scale of each group, of either sign, with the least error on H's diagonal, since a two's complement
  range has one step more on one side;
* GPTQ (Frantar et al. 2022, arXiv 2210.17323): column by column, the one that is seen most first, each error spread
  over the columns that are still open;
* descent: each integer in turn takes the value that is best given the others (see
  :mod:`edgec.passes.quantize.rounding`);
* alternation: the scales of a row are the solution of a least squares problem given its integers, and the integers
  descend again given these.

Scales are numbers of bfloat16, so that an artifact can hold them in two bytes: the integers are fitted to those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ml_dtypes import bfloat16

from edgec.grid import LARGEST_FACTOR, powers_of_two

Range = tuple[np.ndarray, np.ndarray]
"""The least and the largest integer for each element of the depth."""

Stored = Callable[[np.ndarray], np.ndarray]
"""The nearest scales, float32 and not 0, that are to be had."""

_SHARES = tuple(np.linspace(1.0, 0.4, 16))
"""Of the range that the largest weight of a group needs: what scales are tried."""

_SWEEPS = 6

_COLUMNS = 32
"""Columns whose rounding is spread among themselves at once, and as one product of matrices beyond."""

_PARTS = 64
"""Parts of the samples between which moments are compared, at most."""

_AIM_DAMPINGS = (0.1, 1.0, 10.0)
"""Shares of the mean diagonal that are tried against what samples alone say of others."""

_ALTERNATIONS = {2: 6, 3: 4, 4: 2}
"""How often scales and integers are fitted in turn, by bits."""

_STEPS = (17, 14, 10, 7)
"""Of the widest group's scale: what the unit of an output channel's factors is tried as."""

WIDER = {2: 4, 3: 4, 4: 8}
"""The bits of a salient group of weights, by those of the others."""


@dataclass(frozen=True)
class LowBit:
    """Rows of integer weights.

    Attributes:
        values: int8 [outputs, depth], in the range of ``bits``.
        scales: float32 [outputs, groups]; group ``g`` is the depths from ``g · group`` on.
        bits: 2, 3, 4 or 8: those of the widest group.
        group: neighbours along the depth that share a scale.
    """

    values: np.ndarray
    scales: np.ndarray
    bits: int
    group: int

    @property
    def rows(self) -> np.ndarray:
        """The float32 weights [outputs, depth]."""
        return self.values.astype(np.float32) * spread(self.scales, self.group, self.values.shape[1])


def limits(bits: int) -> tuple[int, int]:
    """The least and the largest integer of ``bits``; 8 bits leave out −128, as elsewhere."""
    return (-127, 127) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def spread(scales: np.ndarray, group: int, depth: int) -> np.ndarray:
    """The scale of every weight [outputs, depth]."""
    return np.repeat(scales, group, axis=1)[:, :depth]


def nearest_low_bit(rows: np.ndarray, bits: int, group: int, fixed_point: bool = False) -> LowBit:
    """``rows`` [outputs, depth] rounded to the nearest: the largest magnitude of a group is the least integer.

    With ``fixed_point`` that is only as near as a power of two as its scale lets it be.
    """
    least = limits(bits)[0]
    groups = _grouped(rows, group)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], 2)[..., 0]
    stored = _nearest_powers if fixed_point else _representable
    scales = stored(np.where(extreme == 0, 1.0, extreme / least))
    return LowBit(_nearest(rows, scales, bits, group).astype(np.int8), scales, bits, group)


def fit_low_bit(
    rows: np.ndarray, moment: np.ndarray, bits: int, group: int, symmetric: bool = False, fixed_point: bool = False,
    salient: float = 0.0,
) -> LowBit:  # fmt: skip
    """``rows`` [outputs, depth] as integers of ``bits``.

    Args:
        rows: float32.
        moment: H [depth, depth] of the patches, damped; see :func:`second_moment`.
        bits: 2 to 8.
        group: neighbours along the depth that share a scale.
        symmetric: keep scales positive and leave out the least integer, as integer kernels want it.
        fixed_point: make scales powers of two.
        salient: the share of the groups along the depth that have :data:`WIDER` bits, for all outputs: those whose
            rounding to ``bits`` would change the results most (SliM-LLM, Huang et al. 2024, arXiv 2405.14917).
    """
    stored = _nearest_powers if fixed_point else _representable
    exact, depth = rows.astype(np.float64), rows.shape[1]

    def clipped(range_: Range) -> tuple[np.ndarray, np.ndarray]:
        return _clipped_scales(exact, np.diag(moment), range_, group, symmetric, stored)

    range_ = _range(np.full(depth, bits), symmetric)
    scales, errors = clipped(range_)
    count = round(salient * errors.shape[1])
    if count:
        wide_range = _range(np.full(depth, WIDER[bits]), symmetric)
        wide_scales, wide_errors = clipped(wide_range)
        worth = (errors - wide_errors).sum(axis=0)
        chosen = np.isin(np.arange(len(worth)), np.argsort(-worth, kind="stable")[:count])
        spread_out = np.repeat(chosen, group)[:depth]
        low, high = (np.where(spread_out, *ends) for ends in zip(wide_range, range_, strict=True))
        range_ = low, high
        scales = np.where(chosen, wide_scales, scales)
    integers, scales = _fitted(exact, moment, scales, range_, group, symmetric, stored, _ALTERNATIONS.get(bits, 1))
    return LowBit(integers.astype(np.int8), scales, WIDER[bits] if count else bits, group)


def fit_factored(
    rows: np.ndarray, moment: np.ndarray, group: int, fitting: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """``rows`` [outputs, depth] as integers of 4 bits times a factor for each group, so that integer kernels can have
    scales of groups; see :func:`edgec.grid.common_factors`.

    Args:
        rows: float32.
        moment: H [depth, depth] of the patches, damped.
        group: neighbours along the depth that share a factor.
        fitting: enlarges scales [outputs] to what sums and biases need.

    Returns:
        The products, int8 [outputs, depth], and the scales, float32 [outputs].
    """
    exact, depth = rows.astype(np.float64), rows.shape[1]
    range_ = _range(np.full(depth, 4), True)

    def clipped(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
        return _clipped_scales(exact, np.diag(moment), range_, group, True, stored)

    widest = clipped(_representable)[0].max(axis=1)
    units = [fitting((widest / steps).astype(np.float32))[:, None] for steps in _STEPS]
    errors = [clipped(_multiples_of(unit))[1].sum(axis=1) for unit in units]
    unit = np.take_along_axis(np.stack(units), np.argmin(errors, axis=0)[None, :, None], 0)[0]
    stored = _multiples_of(unit)
    integers, scales = _fitted(exact, moment, clipped(stored)[0], range_, group, True, stored, _ALTERNATIONS[4])
    factors = np.rint(scales / unit)
    return (integers * spread(factors, group, depth)).astype(np.int8), unit[:, 0]


def _multiples_of(unit: np.ndarray) -> Stored:
    """The nearest multiples of ``unit`` [outputs, 1] by a factor that there is."""
    return lambda scales: (np.clip(np.rint(scales / unit), 1, LARGEST_FACTOR) * unit).astype(np.float32)


def _fitted(
    exact: np.ndarray, moment: np.ndarray, scales: np.ndarray, range_: Range, group: int, positive: bool,
    stored: Stored, alternations: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Integers, as float64 [outputs, depth], and scales [outputs, groups], from these ``scales`` on."""
    integers = _gptq(exact, moment, spread(scales, group, exact.shape[1]), range_)
    integers = _descended(exact, integers, moment, scales, range_, group)
    for _ in range(alternations):
        refitted = _refitted_scales(exact, integers, moment, scales, group, positive, stored)
        moved = _descended(exact, integers, moment, refitted, range_, group)
        better = _error(exact, moved, moment, refitted, group) < _error(exact, integers, moment, scales, group)
        if not better.any():
            break
        integers = np.where(better[:, None], moved, integers)
        scales = np.where(better[:, None], refitted, scales)
    return integers, scales


def _range(bits: np.ndarray, symmetric: bool) -> Range:
    """The least and the largest integer of each element of the depth."""
    ends = np.array([limits(each) for each in bits.tolist()])
    return (-ends[:, 1] if symmetric else ends[:, 0]), ends[:, 1]


def shrunk(moment: np.ndarray, patches: np.ndarray, samples: int) -> np.ndarray:
    """H [depth, depth] with what it says of pairs of elements believed the less, the fewer positions there are, and
    the less the samples agree on it.

    Errors of a row can be made to cancel by pairs that go together on these samples and not on others; and the
    positions of one sample, many as they are, say much the same. So what is off the diagonal is multiplied by no more
    than the share with the least expected error, by its variance between samples (Schäfer and Strimmer 2005, target D,
    after Ledoit and Wolf 2004).

    Args:
        moment: of all patches.
        patches: [positions, depth], sample by sample.
        samples: how many these are of; the positions of a single one are compared with each other.
    """
    wide = patches.astype(np.float32) - patches.mean(axis=0, dtype=np.float32)
    count = min(samples if samples > 1 else len(wide), len(wide), _PARTS)
    total, squares = np.zeros(moment.shape), 0.0
    for part in np.array_split(wide, count):
        own = part.T @ part / len(part)
        total += own
        squares += _beside_diagonal(own)
    seen = _beside_diagonal(total / count)
    chance = (squares / count - seen) / max(count - 1, 1)
    agreed = max(0.0, 1 - chance / max(seen, 1e-30)) if count > 1 else 0.0
    trust = min(agreed, len(patches) / (len(patches) + len(moment)))
    return trust * moment + (1 - trust) * np.diag(np.diag(moment))


def _beside_diagonal(matrix: np.ndarray) -> float:
    """The sum of the squares of all elements but for the diagonal."""
    return float(np.square(matrix, dtype=np.float64).sum() - np.square(np.diag(matrix), dtype=np.float64).sum())


def aimed(rows: np.ndarray, exact: np.ndarray, patches: np.ndarray, centred: bool) -> np.ndarray:
    """``rows`` [outputs, depth] moved to what gives, on the inputs as they will be, most nearly the float results.

    That is the solution of a least squares problem (Li et al. 2025, arXiv 2504.02692), damped as is best for one half
    of the samples where it was solved for the other one; rows stay as they are where nothing helps there.

    Args:
        rows: float32.
        exact: patches [positions, depth] of the float model's inputs, sample by sample.
        patches: the same of the inputs behind quantised layers.
        centred: leave means out, which the bias takes up.
    """
    half = len(patches) // 2
    if not half:
        return rows
    first, second = (_Lost.of(exact[own], patches[own], centred) for own in (slice(half), slice(half, None)))
    wide = rows.T.astype(np.float64)
    gains = first.gains(second, wide) + second.gains(first, wide)
    best = int(np.argmax(gains))
    if gains[best] <= 0:
        return rows
    (moved,) = _Lost.of(exact, patches, centred).moves(wide, (_AIM_DAMPINGS[best],))
    return (rows + moved.T).astype(np.float32)


@dataclass(frozen=True)
class _Lost:
    """What the inputs of a product have lost: ``moment`` [depth, depth] of the patches as they will be, and ``cross``
    of these with what is missing in them."""

    moment: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, exact: np.ndarray, patches: np.ndarray, centred: bool) -> _Lost:
        """See :func:`aimed`."""
        wide, lost = patches.astype(np.float32), exact.astype(np.float32) - patches
        if centred:
            wide, lost = wide - wide.mean(axis=0), lost - lost.mean(axis=0)
        return cls((wide.T @ wide).astype(np.float64), (wide.T @ lost).astype(np.float64))

    def moves(self, columns: np.ndarray, dampings: Sequence[float]) -> list[np.ndarray]:
        """What is to be added to weights [depth, outputs], by shares of the mean diagonal that damp it."""
        values, vectors = np.linalg.eigh(self.moment)
        wanted = vectors.T @ (self.cross @ columns)
        mean = max(float(values.mean()), 1e-30)
        return [vectors @ (wanted / (np.maximum(values, 0) + share * mean)[:, None]) for share in dampings]

    def gains(self, there: _Lost, columns: np.ndarray) -> np.ndarray:
        """By how much each damping lowers the square error of results ``there``."""
        wanted = there.cross @ columns
        return np.array([
            float((2 * move * wanted - move * (there.moment @ move)).sum())
            for move in self.moves(columns, _AIM_DAMPINGS)
        ])  # fmt: skip


def descend(
    rows: np.ndarray,
    integers: np.ndarray,
    moment: np.ndarray,
    steps: np.ndarray,
    low: np.ndarray | int,
    high: np.ndarray | int,
    sweeps: int,
) -> np.ndarray:
    """``integers`` after each took its best value in turn, until none moves.

    Args:
        rows: what they stand for [outputs, depth].
        integers: where they start [outputs, depth].
        moment: H [depth, depth] of the patches.
        steps: float64 [outputs, depth], the worth of one.
        low: the least that each may be, one for all, [depth] or [outputs, depth].
        high: the largest.
        sweeps: over the depth, at most.
    """
    chosen, diagonal = integers.astype(np.float64), np.diag(moment)
    least, most = (np.broadcast_to(each, chosen.shape) for each in (low, high))
    slope = (chosen * steps - rows) @ moment
    for _ in range(sweeps):
        moved = False
        for k in range(rows.shape[1]):
            ideal = chosen[:, k] - slope[:, k] / (diagonal[k] * steps[:, k])
            change = np.clip(np.rint(ideal), least[:, k], most[:, k]) - chosen[:, k]
            (outputs,) = np.nonzero(change)
            if len(outputs):
                moved = True
                chosen[outputs, k] += change[outputs]
                slope[outputs] += (change[outputs] * steps[outputs, k])[:, None] * moment[k]
        if not moved:
            break
    return chosen


def _representable(scales: np.ndarray) -> np.ndarray:
    """The nearest numbers of bfloat16, as float32; never 0."""
    tiny = float(np.finfo(np.float32).tiny)
    safe = np.where(np.abs(scales) < tiny, tiny, scales)
    return safe.astype(bfloat16).astype(np.float32)


def _nearest_powers(scales: np.ndarray) -> np.ndarray:
    """The nearest powers of two, by their ratio, with the sign."""
    safe = _representable(scales)
    return np.copysign(powers_of_two(np.abs(safe) * np.sqrt(0.5)), safe)


def _grouped(rows: np.ndarray, group: int) -> np.ndarray:
    """[outputs, groups, group], zeros behind the last."""
    outputs, depth = rows.shape
    padded = np.zeros((outputs, -(-depth // group) * group), rows.dtype)
    padded[:, :depth] = rows
    return padded.reshape(outputs, -1, group)


def _nearest(rows: np.ndarray, scales: np.ndarray, bits: int, group: int) -> np.ndarray:
    return np.clip(np.rint(rows / spread(scales, group, rows.shape[1])), *limits(bits))


def _clipped_scales(
    rows: np.ndarray, importance: np.ndarray, range_: Range, group: int, positive: bool, stored: Stored
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [outputs, groups]: of all shares and signs the one of least error weighted by ``importance`` [depth];
    and these errors."""
    groups, weight = _grouped(rows, group), _grouped(importance[None], group)
    low, high = (end[::group] for end in range_)
    best, chosen = np.full(groups.shape[:2], np.inf), np.ones(groups.shape[:2], np.float32)
    for sign in (1.0,) if positive else (1.0, -1.0):
        needed = np.maximum((sign * groups).max(axis=2) / high, (sign * groups).min(axis=2) / low)
        # the side with one step more may take the larger tail, the other one being clipped
        wide = np.abs(groups).max(axis=2) / np.maximum(-low, high)
        for share in _SHARES:
            for whole in (needed, wide):
                scales = stored(sign * np.maximum(whole, 0) * share)
                steps = np.clip(np.rint(groups / scales[..., None]), low[:, None], high[:, None])
                error = (np.square(steps * scales[..., None] - groups) * weight).sum(axis=2)
                better = error < best
                best, chosen = np.where(better, error, best), np.where(better, scales, chosen)
    return chosen.astype(np.float32), best


def _gptq(rows: np.ndarray, moment: np.ndarray, scales: np.ndarray, range_: Range) -> np.ndarray:
    """Integers [outputs, depth] at fixed ``scales`` [outputs, depth], as float64.

    What the rounding of a column lost is spread over the columns behind it.
    """
    order = np.argsort(-np.diag(moment), kind="stable")
    inverse = np.linalg.cholesky(np.linalg.inv(moment[np.ix_(order, order)])).T
    left, found = rows[:, order].copy(), np.empty_like(rows)
    for start in range(0, len(order), _COLUMNS):
        end = min(start + _COLUMNS, len(order))
        own, errors = left[:, start:end].copy(), np.empty((len(rows), end - start))
        for place, column in enumerate(order[start:end]):
            step = scales[:, column]
            chosen = np.clip(np.rint(own[:, place] / step), range_[0][column], range_[1][column])
            found[:, column] = chosen
            errors[:, place] = (own[:, place] - chosen * step) / inverse[start + place, start + place]
            own[:, place + 1 :] -= errors[:, place, None] * inverse[start + place, start + place + 1 : end]
        left[:, end:] -= errors @ inverse[start:end, end:]
    return found


def _descended(
    rows: np.ndarray, integers: np.ndarray, moment: np.ndarray, scales: np.ndarray, range_: Range, group: int
) -> np.ndarray:
    steps = spread(scales, group, rows.shape[1]).astype(np.float64)
    return descend(rows, integers, moment, steps, *range_, _SWEEPS)


def _refitted_scales(
    rows: np.ndarray, integers: np.ndarray, moment: np.ndarray, scales: np.ndarray, group: int, positive: bool,
    stored: Stored,
) -> np.ndarray:  # fmt: skip
    """The scales [outputs, groups] that are best for the ``integers``; a group of zeros keeps its own."""
    starts = np.arange(0, rows.shape[1], group)
    # of each group's integers the products with every column, then summed up over the columns of each group
    pairs = [
        np.add.reduceat((integers[:, own] @ moment[own]) * integers, starts, axis=1)
        for own in (slice(start, start + group) for start in starts)
    ]
    normal = np.stack(pairs, axis=1)
    wanted = np.add.reduceat(integers * (rows @ moment), starts, axis=1)
    diagonal = np.einsum("mgg->mg", normal)
    used = diagonal > 0
    diagonal += np.where(used, 1e-9 * diagonal.max(axis=1, keepdims=True), 1.0)
    solved = np.linalg.solve(normal, wanted[..., None])[..., 0]
    valid = used & np.isfinite(solved) & ((solved > 0) | (not positive))
    return stored(np.where(valid, solved, scales))


def _error(
    rows: np.ndarray, integers: np.ndarray, moment: np.ndarray, scales: np.ndarray, group: int
) -> np.ndarray:
    """What each row costs."""
    errors = integers * spread(scales, group, rows.shape[1]) - rows
    return np.einsum("mk,mk->m", errors @ moment, errors)
