"""The accuracy guard: how much a quantised model loses, and which layers go back to more bits to keep it little.

Points are counted as :mod:`edgec.quantisation.judge` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgec.errors import EdgecError
from edgec.passes.quantize import Quantized, Recipe

if TYPE_CHECKING:
    from edgec.quantisation.judge import Judge
    from edgec.quantisation.layer_errors import LayerErrors
    from edgec.quantisation.mixing import Mix

@dataclass(frozen=True)
class Attempt:
    """One quantised model that was judged: the precision of each layer that was put back, and its score."""

    put_back: Mapping[str, str]
    score: float


@dataclass(frozen=True)
class Guarded:
    """What the guard did.

    Attributes:
        measure: what the scores count.
        samples: on how many samples.
        float_score: the float model's, 100 at best.
        score: the quantised model's.
        first_score: what it was before any layer was put back.
        put_back: the precision of each layer that was.
        attempts: every model that was judged, in order; the last is the one that was taken.
    """

    measure: str
    samples: int
    float_score: float
    score: float
    first_score: float
    put_back: Mapping[str, str]
    attempts: tuple[Attempt, ...] = ()

    @property
    def drop(self) -> float:
        """Points lost against the float model."""
        return self.float_score - self.score

    @property
    def verdict(self) -> str:
        """The points lost, and what was measured on how many samples."""
        return (
            f"{self.measure} on {self.samples} samples: float {self.float_score:.2f}, quantised {self.score:.2f} "
            f"({0 - self.drop:+.2f} points)"
        )

    def __str__(self) -> str:
        if not self.put_back:
            return self.verdict
        layers = ", ".join(f"{name} ({bits})" for name, bits in self.put_back.items())
        return f"{self.verdict}; it was {self.first_score:.2f} before these layers were put back: {layers}"


Quantise = Callable[[Recipe], Quantized]

Retreat = Callable[[Quantized], Iterable[Recipe]]
"""From a model that loses too much to recipes that lose less, the first of which is tried first."""

LADDERS: Mapping[str, Sequence[str]] = {
    "int8": ("int16", "float"),
    "w4a8": ("int8", "int16", "float"),
    "p2": ("int8", "int16", "float"),
    "p1": ("p2", "int8", "int16", "float"),
    "w2": ("w4", "w8", "float"),
    "w3": ("w4", "w8", "float"),
    "w4": ("w8", "float"),
    "w8": ("float",),
}
"""By a recipe's default precision: what layers that lose too much are given."""


def worst_put_back(recipe: Recipe, rank: Callable[[Quantized], LayerErrors]) -> Retreat:
    """Layers go back that cost most, one, then two, four … of them: to the next precision of :data:`LADDERS`, and where
    that is not enough, to the one after it, up to float.

    Args:
        recipe: where to start.
        rank: tells what each layer costs.
    """

    def retreat(found: Quantized) -> Iterator[Recipe]:
        worst, layers = rank(found).worst_first(), dict(recipe.layers)
        for bits in LADDERS[recipe.default]:
            count = 1
            while count < 2 * len(worst):
                layers |= dict.fromkeys(worst[:count], bits)
                yield replace(recipe, layers=dict(layers))
                count *= 2

    return retreat


def gentler_mixes(recipe: Recipe, first: Mix) -> Retreat:
    """The choices of bits by layer that have less loss than the ``first``, which is that of ``recipe``."""
    return lambda found: (mix.recipe(recipe) for mix in first.gentler())


def guard(
    judge: Judge, quantise: Quantise, recipe: Recipe, most: float | None, retreat: Retreat
) -> tuple[Quantized, Guarded]:
    """Quantise, by one recipe after the other until at most ``most`` points are lost.

    Args:
        judge: measures.
        quantise: makes a quantised model by a recipe.
        recipe: the first one.
        most: points that may be lost; None only measures.
        retreat: tells the others.

    Returns:
        The last model that was made, which is the one that was judged last.

    Raises:
        EdgecError: the last recipe's loss is more than ``most``.
    """
    found = quantise(recipe)
    attempts = [Attempt({}, judge.score_of(found.model))]
    enough = judge.float_score - (100.0 if most is None else most)
    others = iter(retreat(found))
    while attempts[-1].score < enough and (other := next(others, None)) is not None:
        found = quantise(other)
        put_back = {name: bits for name, bits in other.layers.items() if recipe.layers.get(name) != bits}
        attempts.append(Attempt(put_back, judge.score_of(found.model)))
    first, last = attempts[0], attempts[-1]
    guarded = Guarded(
        judge.measure, len(judge.samples), judge.float_score, last.score, first.score, last.put_back, tuple(attempts)
    )  # fmt: skip
    if last.score < enough:
        raise EdgecError(
            f"quantisation loses {guarded.drop:.2f} points ({guarded.measure}), more than --max-drop {most:g}, even "
            "with every layer put back; give more calibration samples or allow more"
        )
    return found, guarded
