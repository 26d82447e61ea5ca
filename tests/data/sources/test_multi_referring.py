"""multi_referring.py: several things in one question, each asked for at most once per text."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.data.sources.expressions import Asked
from pixellm.data.sources.multi_referring import MultiReferringSource, ask_in_groups
from tests.data.sources.build import build_all
from tests.data.sources.refer_files import annotation, drawn, image, mask, ref, write_refer


def test_expressions_of_one_photo_are_joined(tmp_path: Path) -> None:
    refs = [ref(1, 10, "woman on left"), ref(2, 11, "the man"), ref(3, 12, "dog below"), ref(4, 20, "alone", image_id=2)]
    write_refer(tmp_path, refs, [annotation(number) for number in (10, 11, 12)] + [annotation(20, image_id=2)], [image(1), image(2)])
    (row,), (rejected,) = build_all(MultiReferringSource(input=str(tmp_path), split="train"))
    assert (row["source"], rejected.image_id, rejected.reason) == ("multi_refcoco", "2", "nothing_to_ask")
    (conversation,) = row["conversations"]
    assert conversation["task"] == "referring"
    phrases = {"woman on left": 10, "man": 11, "dog below": 12}
    parts = conversation["answer"].split("{seg}")
    assert len(parts) == 4
    for part, target in zip(parts, conversation["targets"], strict=False):
        (name,) = [name for name in phrases if part.rstrip().endswith(f"he {name}")]
        np.testing.assert_array_equal(mask(row["regions"][target[0]]), drawn(phrases[name]))
    assert all(name in conversation["question"] for name in phrases)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=9), st.integers(2, 5), st.integers(0, 1000))
def test_groups_keep_the_limits(texts: list[list[str]], max_targets: int, seed: int) -> None:
    """A number marks the thing, so that the text of a question tells what it asks for."""
    things_of: dict[str, set[int]] = {}
    for index, names in enumerate(texts):
        for name in names:
            things_of.setdefault(f"<{name}>", set()).add(index)
    asked = [Asked(f"<{name}>", [index]) for index, names in enumerate(texts) for name in names]
    conversations = ask_in_groups(asked, random.Random(seed), max_targets)
    assert conversations == ask_in_groups(asked, random.Random(seed), max_targets)
    uses: Counter[str] = Counter()
    for each in conversations:
        targets = [index for target in each["targets"] for index in target]
        assert 2 <= len(set(targets)) == len(each["targets"]) <= max_targets
        named = [name for name in things_of if name in each["question"]]
        uses.update(named)
        assert all(len(things_of[name]) == 1 for name in named)
        assert sorted(targets) == sorted(index for name in named for index in things_of[name])
        assert [min(things_of[part.rstrip()[-3:]]) for part in each["answer"].split("{seg}")[:-1]] == targets
    assert set(uses.values()) <= {1}
    distinct = {index for index, names in enumerate(texts) if any(len(things_of[f"<{name}>"]) == 1 for name in names)}
    asked_for = {index for each in conversations for target in each["targets"] for index in target}
    if max_targets > 2 and len(distinct) > 1:
        assert asked_for == distinct
    else:
        assert len(asked_for) >= (len(distinct) // 2 * 2 if len(distinct) > 1 else 0)
