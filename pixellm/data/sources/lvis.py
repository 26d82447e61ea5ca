"""LVIS v0.5 and v1: about 1,200 categories with synonyms and definitions, annotated on COCO photos."""

import re
from collections import Counter
from typing import ClassVar

from pixellm.data.sources.coco_files import CocoCategory
from pixellm.data.sources.instances import InstancesSource
from pixellm.data.sources.referring import Category

PERSON = "person"  # LVIS gives it the synonyms baby, child, boy, girl, man, woman, and v0.5 even the name "baby": kinds, not synonyms


class LvisSource(InstancesSource):
    """LVIS v0.5 and v1: about 1,200 categories with synonyms, on COCO photos.

    It is federated: a photo says for which categories annotators looked and found none (`neg_category_ids`), and of which they stopped
    marking before the end (`not_exhaustive_category_ids`).
    """

    dataset: ClassVar[str] = "lvis"
    is_federated: ClassVar[bool] = True

    def build_categories(self, entries: list[CocoCategory]) -> dict[int, Category]:
        """`bow_(weapon)` is called "bow (weapon)"; people say one of its synonyms that no other category has, without the brackets."""
        spoken = {entry.id: _phrases_of(entry) for entry in entries}
        uses = Counter(phrase for phrases in spoken.values() for phrase in phrases)
        categories = {}
        for entry in entries:
            name = PERSON if PERSON in spoken[entry.id] else entry.name.replace("_", " ")
            own = tuple(phrase for phrase in spoken[entry.id] if uses[phrase] == 1)
            categories[entry.id] = Category(name, own or (name,), entry.definition or None)
        return categories


def _phrases_of(entry: CocoCategory) -> list[str]:
    phrases = list(dict.fromkeys(map(_to_phrase, [entry.name, *entry.synonyms])))
    return [PERSON] if PERSON in phrases else phrases


def _to_phrase(text: str) -> str:
    return re.sub(r"\s*\([^)]*\)", "", text.replace("_", " ")).strip() or text
