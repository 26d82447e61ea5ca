"""The warm start of tower and mask head: what a batch holds, whom its losses reach, and that it learns."""

import copy

import numpy as np
import pytest
import torch

from pixellm.data.schema import build_region
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.spans import StreamedRow
from pixellm.errors import ShardError
from pixellm.masks import mask_to_rle
from pixellm.train.tower import TowerCollator, TowerConfig, WordPrompts, read_names, tower_losses
from tests.data.rows import make_photo, make_row
from tests.train.examples import base_model

NAMES = ["blue ring", "red ring", "red star"]
SIZE = 96


def square(top, left, side=24):
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[top:top + side, left:left + side] = True
    return mask


def make_named_row(**named):
    """A photo with one region per mask; `red_star=[mask, mask]` are two of one name."""
    regions = [build_region(mask_to_rle(mask), "thing", description=name.replace("_", " ")) for name, masks in named.items()
               for mask in masks]
    return make_row(image=make_photo(SIZE, SIZE), height=SIZE, width=SIZE, regions=regions)


def collate(*rows, **changes):
    config = TowerConfig.model_validate({"data": ["shards"], "output": "out", "steps": 1, "absent_per_photo": 2, **changes})
    model, processor = base_model()
    collator = TowerCollator(processor.image_processor, model.config.patches_per_side, NAMES, config)
    return collator, collator.collate([StreamedRow(row, 0, str(index)) for index, row in enumerate(rows)])


def names_of(collator, batch):
    by_words = {tuple(words): name for name, words in collator.words_of.items()}
    return [by_words[tuple(words)] for words in batch.words_of_name.numpy()]


def test_regions_of_one_name_are_one_mask_and_near_names_get_an_empty_one():
    collator, batch = collate(make_named_row(red_star=[square(0, 0), square(48, 48)]), make_named_row(blue_ring=[square(24, 0)]))
    found = {(int(photo), name): mask.numpy() for photo, name, mask
             in zip(batch.photo_of_name, names_of(collator, batch), batch.masks, strict=True)}
    expected = square(0, 0) | square(48, 48)
    assert (found[0, "red star"] == expected.reshape(48, 2, 48, 2).mean((1, 3))).all()
    assert {key for key, mask in found.items() if not mask.any()} == {(0, "red ring"), (1, "red ring")}, "nothing blue is near a red star"
    assert found.keys() == {(0, "red star"), (0, "red ring"), (1, "blue ring"), (1, "red ring")}


def test_patches_know_the_words_that_cover_them():
    collator, batch = collate(make_named_row(red_star=[square(0, 0)], blue_ring=[square(0, 20)]))
    words = {word: batch.patch_words[0, :, place].reshape(12, 12) for place, word in enumerate(["blue", "red", "ring", "star"])}
    assert collator.num_words == 4
    assert (words["red"] == words["star"]).all() and (words["blue"] == words["ring"]).all()
    assert words["red"][:3, :3].eq(1).all() and words["red"].sum() == 9
    assert words["blue"][0, 2:6].tolist() == [0.5, 1, 1, 0.5]


def test_no_more_masks_than_asked_for_are_drawn():
    _, batch = collate(make_named_row(red_star=[square(0, 0)], blue_ring=[square(0, 20)]), masks_per_step=2)
    assert len(batch.masks) == len(batch.photo_of_name) == len(batch.words_of_name) == 2


def test_ignored_regions_are_not_named_and_photos_without_names_are_left_out():
    row = make_named_row(red_star=[square(0, 0)], blue_ring=[square(48, 48)])
    row["regions"][1]["ignore"] = True
    crowd = make_named_row(blue_ring=[square(0, 0)])
    crowd["regions"][0]["ignore"] = True
    collator, _ = collate(row, photos_per_step=1)
    rows = [StreamedRow(each, 0, "row") for each in (crowd, row, crowd)]
    batch = collator.build(rows)
    assert len(batch.pixel_values) == 1 and collator.build(rows[:1]) is None
    present = [name for name, mask in zip(names_of(collator, batch), batch.masks, strict=True) if mask.any()]
    assert present == ["red star"] and batch.patch_words[0, :, 0].sum() == 0


def test_it_learns_and_reaches_tower_and_mask_head_only():
    torch.manual_seed(0)
    model = copy.deepcopy(base_model()[0]).train()
    collator, batch = collate(make_named_row(red_star=[square(0, 0)]), make_named_row(blue_ring=[square(40, 40)]))
    vision, text = model.config.vision_config, model.config.text_config
    prompts = WordPrompts(collator.num_words, len(model.config.codebook_token_ids), text.hidden_size, vision.hidden_size)
    optimizer = torch.optim.AdamW([*model.parameters(), *prompts.parameters()], lr=1e-3, weight_decay=0)
    history = []
    for _ in range(30):
        losses = tower_losses(model, prompts, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert all(history[-1][name] < 0.7 * history[0][name] for name in ("bce", "dice", "patch"))
    reached = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"vision_tower", "mask_head"}


def test_names_are_read_from_shards(tmp_path):
    write_shards([make_row(), make_row(1)], str(tmp_path / "shards"), ShardOptions())
    assert read_names([str(tmp_path / "shards")]) == ["brown dog", "cat"]
    row = make_row(regions=[], conversations=[{"question": "What?", "answer": "Nothing.", "targets": [], "task": "vqa"}])
    write_shards([row], str(tmp_path / "empty"), ShardOptions())
    with pytest.raises(ShardError, match="have no regions"):
        read_names([str(tmp_path / "empty")])
