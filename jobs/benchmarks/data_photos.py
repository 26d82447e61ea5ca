"""What `suite=data` measures on: drawn photos whose spectrum and size are those of a photo, as files, as shards, and with polygons."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixellm.data.schema import Conversation, Row, build_region
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.masks import mask_to_rle
from pixellm.storage import join_uri

SIZE_HW = (480, 640)
OPTIONS = ShardOptions.model_validate({"shard_size_mb": 48, "row_group_mb": 24})
NUM_DRAWN = 64  # spectra; each photo is one of them, shifted and mirrored, with noise of its own


def write_photos(folder: Path, num_photos: int) -> float:
    """Writes `NUMBER.jpg` and returns their mean size in bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    drawn = [_draw(SIZE_HW, rng) for _ in range(NUM_DRAWN)]
    for number in range(num_photos):
        photo = np.roll(drawn[number % NUM_DRAWN], rng.integers(0, SIZE_HW[0]), axis=0) + rng.normal(0, 4, (*SIZE_HW, 1))
        (folder / f"{number}.jpg").write_bytes(_to_jpeg(photo))
    return float(np.mean([file.stat().st_size for file in folder.iterdir()]))


def draw_photo(size_hw: tuple[int, int], seed: int) -> bytes:
    """One such photo of another size, JPEG."""
    rng = np.random.default_rng(seed)
    return _to_jpeg(_draw(size_hw, rng) + rng.normal(0, 4, (*size_hw, 1)))


def _draw(size_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(size_hw[0])[:, None], np.fft.rfftfreq(size_hw[1])[None])
    frequency[0, 0] = 1
    phase = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
    grey, *colors = np.fft.irfft2(phase / frequency**1.2, s=size_hw)
    channels = np.stack([grey, grey + 0.3 * colors[0], grey + 0.3 * colors[1]], axis=-1)
    return (channels - channels.mean()) / channels.std() * 55 + 118


def _to_jpeg(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_photo_shards(folder: Path, uri: str, num_sets: int) -> list[str]:
    """The photos dealt out to shard folders below `uri`."""
    mask = np.zeros(SIZE_HW, bool)
    mask[100:200, 100:300] = True
    region = build_region(mask_to_rle(mask), "thing")
    files = sorted(folder.iterdir())
    uris = [join_uri(uri, str(number)) for number in range(num_sets)]
    for number, target in enumerate(uris):
        write_shards((Row(image_id=file.stem, source="drawn", split="train", image=file.read_bytes(), height=SIZE_HW[0], width=SIZE_HW[1],
                          regions=[region], license=None, url=None, conversations=[Conversation(
                              question=None, answer=None, targets=[[0]], task="semantic")]) for file in files[number::num_sets]),
                     target, OPTIONS)
    return uris


def write_instances(folder: Path, file: Path) -> None:
    """A COCO file with 8 polygons of 24 points on each photo."""
    rng, height, width = np.random.default_rng(1), *SIZE_HW
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for photo in sorted(folder.iterdir()):
        images.append({"id": int(photo.stem), "file_name": photo.name, "height": height, "width": width})
        for _ in range(8):
            radius = rng.uniform(20, 90) * rng.uniform(0.7, 1.3, len(angles))
            x = (rng.uniform(90, width - 90) + radius * np.cos(angles)).clip(0, width)
            y = (rng.uniform(90, height - 90) + radius * np.sin(angles)).clip(0, height)
            annotations.append({"id": len(annotations), "image_id": int(photo.stem), "category_id": int(rng.integers(1, 81)), "iscrowd": 0,
                                "segmentation": [np.stack([x, y], 1).ravel().round(2).tolist()]})
    categories = [{"id": number, "name": f"thing {number}"} for number in range(1, 81)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
