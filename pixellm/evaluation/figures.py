"""Figures as ratios of sums over photos, with intervals by bootstrap, and whether two models differ by more than chance.

Every figure is the mean over columns of (sum of numerators / sum of denominators); most have one column, mIoU has one for each class.
Photos are what is drawn anew: questions about one photo are not independent (Efron and Tibshirani, An Introduction to the Bootstrap).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NUM_DRAWS, DRAWS_AT_A_TIME = 2000, 100
LEVEL = 0.95


@dataclass(frozen=True)
class Term:
    """What one question adds to a figure."""

    figure: str
    numerator: float
    denominator: float
    column: str = ""


@dataclass(frozen=True)
class Figure:
    """`numerators`, `denominators` (P, C) float64, of each photo and column."""

    columns: tuple[str, ...]
    numerators: np.ndarray
    denominators: np.ndarray

    def value(self) -> float | None:
        """None where there is nothing to average."""
        (value,) = self.values(np.ones((1, len(self.numerators))))
        return None if np.isnan(value) else float(value)

    def values(self, counts: np.ndarray) -> np.ndarray:
        """With photo p counted `counts[d, p]` times: (D,), not a number where there is nothing to average."""
        below = counts @ self.denominators
        ratios = np.divide(counts @ self.numerators, below, out=np.full(below.shape, np.nan), where=below > 0)
        num_columns = (below > 0).sum(1)
        return np.divide(np.nansum(ratios, 1), num_columns, out=np.full(len(below), np.nan), where=num_columns > 0)


@dataclass(frozen=True)
class Interval:
    """`low` to `high` hold LEVEL of the draws."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether it lies on one side of `value`."""
        return value < self.low or value > self.high


@dataclass(frozen=True)
class Difference:
    """Of a figure in two evaluations of the same photos: other minus one."""

    one: float
    other: float
    interval: Interval

    @property
    def is_larger_than_chance(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.interval.excludes(0.0)


def build_figures(terms_of_photos: Sequence[Iterable[Term]]) -> dict[str, Figure]:
    """By name, in the order in which they first occur; `terms_of_photos[p]` are those of photo p."""
    terms = [list(each) for each in terms_of_photos]
    columns: dict[str, set[str]] = {}
    for term in (term for each in terms for term in each):
        columns.setdefault(term.figure, set()).add(term.column)
    figures = {name: Figure(tuple(sorted(found)), *np.zeros((2, len(terms), len(found)))) for name, found in columns.items()}
    places = {name: {column: place for place, column in enumerate(figure.columns)} for name, figure in figures.items()}
    for photo, each in enumerate(terms):
        for term in each:
            place = photo, places[term.figure][term.column]
            figures[term.figure].numerators[place] += term.numerator
            figures[term.figure].denominators[place] += term.denominator
    return figures


def interval(figure: Figure, seed: int = 0) -> Interval | None:
    """None for fewer than two photos, or where a draw can have nothing to average."""
    return _interval(np.concatenate([np.zeros(0), *(figure.values(counts) for counts in _draws(len(figure.numerators), seed))]))


def compare(one: Figure, other: Figure, seed: int = 0) -> Difference | None:
    """Both over the same photos, which are drawn together (paired). None where there is nothing to compare."""
    values = one.value(), other.value()
    if values[0] is None or values[1] is None:
        return None
    draws = _draws(len(one.numerators), seed)
    found = _interval(np.concatenate([np.zeros(0), *(other.values(counts) - one.values(counts) for counts in draws)]))
    return None if found is None else Difference(values[0], values[1], found)


def select_photos(figures: Mapping[str, Figure], places: Sequence[int]) -> dict[str, Figure]:
    """Of some photos, in that order."""
    return {name: Figure(each.columns, each.numerators[list(places)], each.denominators[list(places)]) for name, each in figures.items()}


def _draws(num_photos: int, seed: int) -> Iterator[np.ndarray]:
    """How often each photo is drawn: (DRAWS_AT_A_TIME, P), until there are NUM_DRAWS."""
    rng = np.random.default_rng(seed)
    for _ in range(NUM_DRAWS // DRAWS_AT_A_TIME if num_photos > 1 else 0):
        yield rng.multinomial(num_photos, np.full(num_photos, 1 / num_photos), size=DRAWS_AT_A_TIME).astype(np.float64)


def _interval(values: np.ndarray) -> Interval | None:
    known = values[~np.isnan(values)]
    if len(known) < NUM_DRAWS / 2:  # a figure of very few photos
        return None
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))
