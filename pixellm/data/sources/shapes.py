"""Drawn scenes of coloured shapes with exact masks. Each scene is a pure function of (seed, scene number): no files are read."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from pixellm.data.schema import Conversation, RejectedRow, Row, build_region
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, Source, SourcePlan
from pixellm.data.sources.shapes_questions import COLORS, SHAPES, SceneObject, all_texts, make_questions
from pixellm.masks import mask_to_rle
from pixellm.settings import Seed

__all__ = ["COLOR_RGB", "Scene", "ShapesSource", "all_texts", "draw_scene"]

COLOR_RGB = {"red": (206, 42, 42), "green": (48, 165, 62), "blue": (45, 84, 212), "yellow": (236, 206, 48), "purple": (156, 62, 186),
             "white": (240, 240, 240)}
DRAWING_VERSION = 2  # to be raised whenever the same (seed, scene number) gives another picture or other questions
BYTES_PER_PIXEL = 1.6  # of a row: 1.58 in the mean of 60 scenes of 96 px
RADIUS_RANGE = (11 / 96, 20 / 96)  # of the photo's width
LEADER_SHARE = 0.4  # of scenes whose last object is clearly the largest and lies near another one
LEADER_RADIUS_RANGE, FOLLOWER_RADIUS_RANGE = (18 / 96, 21 / 96), (11 / 96, 14.5 / 96)
MIN_VISIBLE_SHARE = 0.6
MIN_COVERED_SHARE = 0.06  # of an object's own area: with less hidden, nobody would call it "behind" the other
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """A drawn scene: `image` (S, S, 3) uint8; object i has the visible pixels `masks[i]` (S, S) bool. Later objects are in front."""

    image: np.ndarray
    masks: list[np.ndarray]
    objects: list[SceneObject]


@dataclass(frozen=True)
class _Placed:
    color: str
    shape: str
    radius: float
    coverage: np.ndarray  # (S, S) in [0, 1], as if nothing were in front
    mask: np.ndarray  # (S, S) bool, coverage of at least a half
    outline_area: float


class ShapesSource(Source):
    """Drawn scenes of coloured shapes; needs no files. Those from `first_scene` to `first_scene + num_scenes - 1` of `seed`."""

    num_scenes: int = Field(gt=0)
    seed: Seed = 0
    first_scene: int = Field(0, ge=0)
    split: str = "train"
    size_px: int = Field(96, ge=48)
    questions: Literal["naming", "reasoning"] = "reasoning"
    questions_per_scene: int = Field(6, ge=1)
    colors_per_scene: int = Field(len(COLORS), ge=1, le=len(COLORS), description="few: a colour alone does not tell which object is meant")

    def plan(self) -> SourcePlan:
        """One record per scene; a drawn scene is never rejected. `version` names the drawing rules and all that decides what is drawn."""
        scenes = range(self.first_scene, self.first_scene + self.num_scenes)
        draft = PlanDraft("shapes", self.split)
        for scene in scenes:
            draft.add(self._image_id(scene), {}, {"scene": scene}, num_bytes=round(BYTES_PER_PIXEL * self.size_px**2))
        asked = f"{self.questions_per_scene} {self.questions} questions"
        drawn = f"{self.size_px} px, {self.colors_per_scene} colours"
        version = f"shapes {DRAWING_VERSION}, seed {self.seed}, scenes {scenes[0]}-{scenes[-1]}, {drawn}, {asked}"
        return draft.finish(ShapesBuilder(self), version)

    def _image_id(self, scene: int) -> str:
        return f"shapes-{self.seed}-{scene:06d}"

    def build_row(self, index: int) -> Row:
        """The row of scene `index`: photo, one region per object in painter's order, questions."""
        scene = draw_scene(self.seed, index, self.size_px, self.colors_per_scene)
        rng = np.random.default_rng([self.seed, index, 1])
        png = io.BytesIO()
        Image.fromarray(scene.image).save(png, format="PNG")
        questions = make_questions(scene.objects, self.questions, self.questions_per_scene, rng)
        return Row(
            image_id=self._image_id(index), source="shapes", split=self.split, image=png.getvalue(),
            height=self.size_px, width=self.size_px,
            regions=[build_region(mask_to_rle(mask), category=scene_object.shape, description=scene_object.name)
                     for mask, scene_object in zip(scene.masks, scene.objects, strict=True)],
            conversations=[Conversation(question=each.question, answer=each.answer, targets=[[target] for target in each.targets],
                                        task="referring" if self.questions == "naming" else "reasoning") for each in questions],
            license=None, url=None,
        )


@dataclass(frozen=True)
class ShapesBuilder:
    """Draws the scene that a record names."""

    source: ShapesSource

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder."""
        yield self.source.build_row(json.loads(record.payload)["scene"])


def draw_scene(seed: int, index: int, size_px: int, num_colors: int = len(COLORS)) -> Scene:
    """Scene `index` of `seed`: 2 to 6 objects with different names, each with at least 60 % of its own area visible."""
    rng = np.random.default_rng([seed, index, 0])
    placed: list[_Placed] = []
    while len(placed) < 2:
        placed = _place_objects(int(rng.integers(2, 7)), num_colors, size_px, rng)
    image = _draw_background(size_px, rng)
    for each in placed:
        color = np.array(COLOR_RGB[each.color]) + rng.integers(-12, 13, 3) + rng.normal(0, 3, (size_px, size_px, 1))
        image += each.coverage[..., None] * (color - image)
    masks = _visible_masks(placed)
    objects = [
        SceneObject(each.color, each.shape, center_xy=_center_xy(mask), radius=each.radius / size_px,
                    outline_area=each.outline_area / size_px**2, covers=_covered_by(place, placed, masks))
        for place, (each, mask) in enumerate(zip(placed, masks, strict=True))
    ]
    return Scene(image.round().clip(0, 255).astype(np.uint8), masks, objects)


def _place_objects(count: int, num_colors: int, size_px: int, rng: np.random.Generator) -> list[_Placed]:
    """Tries each object at several places; one that would hide too much of another is left out."""
    order = rng.permutation(len(COLORS) * len(SHAPES)).tolist()
    colors = list(dict.fromkeys(name // len(SHAPES) for name in order))[:num_colors]
    names = [name for name in order if name // len(SHAPES) in colors][:count]
    has_leader = rng.random() < LEADER_SHARE
    placed: list[_Placed] = []
    centers: list[np.ndarray] = []
    for place, name in enumerate(names):
        leads = has_leader and place == count - 1
        color, shape = COLORS[name // len(SHAPES)], SHAPES[name % len(SHAPES)]
        radius_range = LEADER_RADIUS_RANGE if leads else FOLLOWER_RADIUS_RANGE if has_leader else RADIUS_RANGE
        radius = rng.uniform(*radius_range) * size_px
        for _ in range(40):
            low, high = 1.25 * radius, size_px - 1.25 * radius
            center = rng.uniform(low, high, 2)
            if centers and rng.random() < (0.9 if leads else 0.4):  # near another one, so that overlaps are common
                center = (centers[int(rng.integers(len(centers)))] + rng.normal(0, 1.2 * radius, 2)).clip(low, high)
            candidate = _build_object(color, shape, radius, center, rng.uniform(-25, 25), size_px)
            if any(each.color == color and (each.mask & candidate.mask).any() for each in placed):
                continue  # where two of one colour overlap, nobody could see which is in front
            trial = [*placed, candidate]
            if all(mask.sum() >= MIN_VISIBLE_SHARE * each.mask.sum() for mask, each in zip(_visible_masks(trial), trial, strict=True)):
                placed, centers = trial, [*centers, center]
                break
    return placed


def _build_object(color: str, shape: str, radius: float, center_xy: np.ndarray, angle_deg: float, size_px: int) -> _Placed:
    canvas = Image.new("L", (size_px * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(canvas)
    if shape in ("circle", "ring"):
        draw.ellipse(_circle_box(center_xy, radius), fill=255)
    else:
        draw.polygon([tuple(point) for point in (_outline(shape, radius, angle_deg) + center_xy) * SUPERSAMPLING - 0.5], fill=255)
    outline_area = float(np.asarray(canvas).mean()) / 255 * size_px**2
    if shape == "ring":
        draw.ellipse(_circle_box(center_xy, 0.55 * radius), fill=0)
    coverage = np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX), dtype=np.float64) / 255
    return _Placed(color, shape, radius, coverage, coverage >= 0.5, outline_area)


def _circle_box(center_xy: np.ndarray, radius: float) -> list[float]:
    return [*((center_xy - radius) * SUPERSAMPLING - 0.5), *((center_xy + radius) * SUPERSAMPLING - 0.5)]


def _outline(shape: str, radius: float, angle_deg: float) -> np.ndarray:
    """Corners (P, 2) around the origin. The factors give shapes of one radius about the same size to the eye."""
    if shape == "cross":
        arm, half = 1.08 * radius, 0.38 * radius
        corners = np.array([(half, -arm), (half, -half), (arm, -half), (arm, half), (half, half), (half, arm),
                            (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half), (-half, -arm)])
    else:
        radii = {"square": [1.2] * 4, "triangle": [1.25] * 3, "star": [1.25, 0.55] * 5}[shape]
        start = 45 if shape == "square" else -90  # a square on its side, the others with a corner up
        angles = np.deg2rad(start + np.arange(len(radii)) * 360 / len(radii))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None] * radius
    cosine, sine = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return corners @ np.array([[cosine, sine], [-sine, cosine]])


def _visible_masks(placed: list[_Placed]) -> list[np.ndarray]:
    hidden = np.zeros_like(placed[0].mask)
    masks = []
    for each in reversed(placed):
        masks.append(each.mask & ~hidden)
        hidden |= each.mask
    return masks[::-1]


def _center_xy(mask: np.ndarray) -> tuple[float, float]:
    """Mean of the pixel centres that are on, in shares of the width."""
    y, x = np.nonzero(mask)
    return float(x.mean() + 0.5) / mask.shape[1], float(y.mean() + 0.5) / mask.shape[1]


def _covered_by(place: int, placed: list[_Placed], masks: list[np.ndarray]) -> tuple[int, ...]:
    """Which earlier objects are hidden, in part, by the visible pixels of object `place`."""
    return tuple(other for other in range(place)
                 if (placed[other].mask & masks[place]).sum() >= MIN_COVERED_SHARE * placed[other].mask.sum())


def _draw_background(size_px: int, rng: np.random.Generator) -> np.ndarray:
    """(S, S, 3) float64 in 0..255: a muted colour with a gradient, stripes or blobs, and fine noise."""
    base = rng.uniform(80, 140) + rng.uniform(-14, 14, 3)
    tint = rng.uniform(8, 18) * (1 + rng.uniform(-0.3, 0.3, 3))
    y, x = np.mgrid[:size_px, :size_px] / size_px
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    pattern = rng.integers(3)
    if pattern == 0:
        texture = 2 * (along - along.min()) / np.ptp(along) - 1
    elif pattern == 1:
        texture = 0.6 * np.sin(2 * np.pi * rng.uniform(4, 10) * along)
    else:
        coarse = Image.fromarray(rng.uniform(-1, 1, (6, 6)).astype(np.float32))
        texture = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float64)
    return base + texture[..., None] * tint + rng.normal(0, 3, (size_px, size_px, 1))
