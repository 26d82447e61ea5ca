"""LVIS v0.5 and v1: about 1,200 categories with synonyms and definitions, annotated on COCO photos."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pixellm.data.sources.instances import InstancesSource
from pixellm.data.sources.referring import Category

PERSON = "person"  # LVIS gives it the synonyms baby, child, boy, girl, man, woman, and v0.5 even the name "baby": kinds, not synonyms


class LvisSource(InstancesSource):
    """LVIS is federated: a photo says which categories were verified to be absent, and which are not marked exhaustively."""

    name: Literal["lvis"] = "lvis"

    @property
    def source_name(self) -> str:
        """The `source` column of the rows."""
        return "lvis"

    def build_categories(self, entries: list[dict[str, Any]]) -> dict[int, Category]:
        """`bow_(weapon)` is called "bow (weapon)"; people say one of its synonyms that no other category has, without the brackets."""
        spoken = {entry["id"]: _phrases_of(entry) for entry in entries}
        uses = Counter(phrase for phrases in spoken.values() for phrase in phrases)
        categories = {}
        for entry in entries:
            name = PERSON if PERSON in spoken[entry["id"]] else entry["name"].replace("_", " ")
            own = tuple(phrase for phrase in spoken[entry["id"]] if uses[phrase] == 1)
            categories[entry["id"]] = Category(name, own or (name,), entry.get("def") or None)
        return categories

    def may_be_absent(self, image: Mapping[str, Any]) -> set[int]:
        """Those that annotators looked for and did not find."""
        return set(image.get("neg_category_ids", []))

    def not_exhaustive(self, image: Mapping[str, Any]) -> set[int]:
        """Those that annotators stopped marking before the end."""
        return set(image.get("not_exhaustive_category_ids", []))


def _phrases_of(entry: dict[str, Any]) -> list[str]:
    phrases = list(dict.fromkeys(map(_to_phrase, [entry["name"], *entry.get("synonyms", [])])))
    return [PERSON] if PERSON in phrases else phrases


def _to_phrase(text: str) -> str:
    return re.sub(r"\s*\([^)]*\)", "", text.replace("_", " ")).strip() or text
