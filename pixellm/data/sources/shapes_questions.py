"""Questions about a scene of coloured shapes, and their answers. Knows names, places and sizes of the objects, not pixels.

Two modes: `naming` asks for objects by name; `reasoning` asks for all objects that share a property, a side, a size.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "ring", "square", "triangle", "star", "cross")
ROLLING_SHAPES = ("circle", "ring")
CORNERED_SHAPES = ("square", "triangle", "star", "cross")
Mode = Literal["naming", "reasoning"]

WORDINGS: dict[Mode, dict[str, tuple[str, ...]]] = {
    "naming": {
        "where": ("where is the {object}?", "find the {object}.", "show me the {object}.", "point at the {object}."),
        "everything": ("what is there?", "what do you see?", "name everything.", "show me everything."),
    },
    "reasoning": {
        "roll": ("which of these can roll?", "what can roll?", "find everything that can roll.", "show me all that can roll."),
        "corners": ("which of these have corners?", "what has corners?", "find everything with corners.", "show me all that have corners."),
        "hole": ("which of these have a hole?", "what has a hole?", "find everything with a hole.", "show me all that have a hole."),
        "color": ("which of these are {color}?", "what is {color}?", "find everything that is {color}.", "show me all that are {color}."),
        "not_color": ("which of these are not {color}?", "what is not {color}?", "find everything that is not {color}.",
                      "show me all that are not {color}."),
        **{side: (f"which of these are {side} the {{object}}?", f"what is {side} the {{object}}?",
                  f"find everything {side} the {{object}}.", f"show me all that are {side} the {{object}}.")
           for side in ("left of", "right of", "above", "below")},
        "largest_behind": ("which is the largest one and which is behind it?", "where is the largest one and the one behind it?",
                           "find the largest one and the one behind it.", "show me the largest one and the one behind it."),
        "largest_smallest": ("which is the largest one and which is the smallest one?", "where is the largest one and the smallest one?",
                             "find the largest one and the smallest one.", "show me the largest one and the smallest one."),
    },
}

NO_TARGET_SHARE = 0.12
MAX_PER_KIND = 2
SIDE_MARGIN = 6 / 96  # of the photo's width; a centre nearer to the reference's than this is on neither side
CLEARLY_LARGER = 1.2
# How often a question with so many targets is drawn. Without it most questions would have one or two.
WEIGHT_BY_NUM_TARGETS = (0.0, 0.7, 1.0, 1.4, 2.2, 2.6, 5.0)
WEIGHT_BY_KIND = {"largest_behind": 4.0, "largest_smallest": 3.0}  # rarely unambiguous: asked nearly always when they are


@dataclass(frozen=True)
class SceneObject:
    """What can be asked about one object. `center_xy` of its visible part and `radius` are in shares of the photo's width."""

    color: str
    shape: str
    center_xy: tuple[float, float]
    radius: float
    outline_area: float  # with its hole and hidden parts, in shares of the photo
    covers: tuple[int, ...] = ()  # indices of the objects that it directly lies on

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Question:
    """One question. `targets` are object indices, one for each `{seg}` of the answer, in the answer's order: by colour, then by shape.

    That order can be told from which colours there are; a small model did not learn to name objects from left to right (docs/log.md).
    """

    kind: str
    question: str
    answer: str
    targets: tuple[int, ...]


@dataclass(frozen=True)
class _Candidate:
    kind: str
    word: str  # what fills the wording's slot: a colour, an object's name, or nothing
    targets: tuple[int, ...]


def make_questions(objects: Sequence[SceneObject], mode: Mode, num_questions: int, rng: np.random.Generator) -> list[Question]:
    """At most `num_questions` different questions; fewer when the scene has no more that are unambiguous."""
    draw = _draw_naming if mode == "naming" else _draw_reasoning
    return [_write(candidate, wording, objects, mode) for candidate, wording in draw(objects, num_questions, rng)]


def all_texts(mode: Mode | None = None) -> Iterator[str]:
    """Every question that can be asked, and answers that hold every phrase and every way to join phrases. Always the same texts."""
    names = [f"{color} {shape}" for color, shape in product(COLORS, SHAPES)]
    for one_mode in (mode,) if mode else WORDINGS:
        for wordings in WORDINGS[one_mode].values():
            for wording in wordings:
                words = names if "{object}" in wording else COLORS if "{color}" in wording else ("",)
                yield from (_fill(wording, word) for word in words)
        yield from ([f"there is no {name}." for name in names] if one_mode == "naming" else ["there are none."])
        for first, name in enumerate(names):
            for length in range(1, 7):
                yield answer_text([name, *(names[(first + 7 * step) % len(names)] for step in range(1, length))])


def answer_text(names: Sequence[str]) -> str:
    """`the red circle {seg}, the blue ring {seg} and the white star {seg}.`"""
    phrases = [f"the {name} {{seg}}" for name in names]
    return (", ".join(phrases[:-1]) + " and " if len(phrases) > 1 else "") + phrases[-1] + "."


def _fill(wording: str, word: str) -> str:
    return wording.replace("{object}", word).replace("{color}", word)


def _write(candidate: _Candidate, wording: int, objects: Sequence[SceneObject], mode: Mode) -> Question:
    targets = tuple(sorted(candidate.targets, key=lambda index: (COLORS.index(objects[index].color), SHAPES.index(objects[index].shape))))
    if targets:
        answer = answer_text([objects[index].name for index in targets])
    else:
        answer = f"there is no {candidate.word}." if mode == "naming" else "there are none."
    return Question(candidate.kind, _fill(WORDINGS[mode][candidate.kind][wording], candidate.word), answer, targets)


def _draw_naming(objects: Sequence[SceneObject], num_questions: int, rng: np.random.Generator) -> list[tuple[_Candidate, int]]:
    """One question for everything, then every object once before any of them is asked for again, in other words."""
    present = {scene_object.name for scene_object in objects}
    absent = [name for color, shape in product(COLORS, SHAPES) if (name := f"{color} {shape}") not in present]
    absent = [absent[place] for place in rng.permutation(len(absent))]
    order, first_wording = rng.permutation(len(objects)), int(rng.integers(4))
    drawn = [(_Candidate("everything", "", tuple(range(len(objects)))), int(rng.integers(4)))]
    asked = 0
    while len(drawn) < num_questions and asked < 4 * len(objects):
        if absent and rng.random() < NO_TARGET_SHARE:
            drawn.append((_Candidate("where", absent.pop(), ()), int(rng.integers(4))))
        else:
            index, again = int(order[asked % len(objects)]), asked // len(objects)
            drawn.append((_Candidate("where", objects[index].name, (index,)), (first_wording + index + again) % 4))
            asked += 1
    return [drawn[place] for place in rng.permutation(len(drawn))]


def _draw_reasoning(objects: Sequence[SceneObject], num_questions: int, rng: np.random.Generator) -> list[tuple[_Candidate, int]]:
    left = _reasoning_candidates(objects)
    drawn: list[tuple[_Candidate, int]] = []
    while len(drawn) < num_questions:
        used = Counter(candidate.kind for candidate, _ in drawn)
        left = [candidate for candidate in left if used[candidate.kind] < MAX_PER_KIND]
        wants_none = rng.random() < NO_TARGET_SHARE
        pool = [candidate for candidate in left if wants_none == (not candidate.targets)]
        if not pool and wants_none:
            continue
        if not pool:
            break
        per_kind = Counter(candidate.kind for candidate in pool)
        weights = np.array([(1.0 if wants_none else WEIGHT_BY_NUM_TARGETS[len(each.targets)] * WEIGHT_BY_KIND.get(each.kind, 1.0))
                            / per_kind[each.kind] for each in pool])
        candidate = pool[int(rng.choice(len(pool), p=weights / weights.sum()))]
        left.remove(candidate)
        drawn.append((candidate, int(rng.integers(len(WORDINGS["reasoning"][candidate.kind])))))
    return drawn


def _reasoning_candidates(objects: Sequence[SceneObject]) -> list[_Candidate]:
    """Every unambiguous reasoning question about the scene, also those that nothing answers."""

    def those(holds: Callable[[SceneObject], bool]) -> tuple[int, ...]:
        return tuple(index for index, scene_object in enumerate(objects) if holds(scene_object))

    candidates = [
        _Candidate("roll", "", those(lambda each: each.shape in ROLLING_SHAPES)),
        _Candidate("corners", "", those(lambda each: each.shape in CORNERED_SHAPES)),
        _Candidate("hole", "", those(lambda each: each.shape == "ring")),
    ]
    for color in COLORS:
        same = tuple(index for index, each in enumerate(objects) if each.color == color)
        candidates.append(_Candidate("color", color, same))
        candidates.append(_Candidate("not_color", color, tuple(index for index in range(len(objects)) if index not in same)))
    for reference, (axis, (before, after)) in product(objects, enumerate((("left of", "right of"), ("above", "below")))):
        offsets = [each.center_xy[axis] - reference.center_xy[axis] for each in objects]
        if all(abs(offset) >= SIDE_MARGIN for offset, each in zip(offsets, objects, strict=True) if each is not reference):
            candidates.append(_Candidate(before, reference.name, tuple(i for i, offset in enumerate(offsets) if offset < 0)))
            candidates.append(_Candidate(after, reference.name, tuple(i for i, offset in enumerate(offsets) if offset > 0)))
    return candidates + _size_candidates(objects)


def _size_candidates(objects: Sequence[SceneObject]) -> list[_Candidate]:
    by_radius = sorted(range(len(objects)), key=lambda index: -objects[index].radius)
    if len(objects) < 2 or not _is_larger(objects[by_radius[0]], objects[by_radius[1]]):
        return []
    largest = by_radius[0]
    if len(objects[largest].covers) == 1:
        return [_Candidate("largest_behind", "", (largest, *objects[largest].covers))]
    if len(objects) == 2 or _is_larger(objects[by_radius[-2]], objects[by_radius[-1]]):
        return [_Candidate("largest_smallest", "", (largest, by_radius[-1]))]
    return []


def _is_larger(one: SceneObject, other: SceneObject) -> bool:
    return one.radius >= CLEARLY_LARGER * other.radius and one.outline_area > other.outline_area
