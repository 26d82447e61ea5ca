"""COCO: `instances_*.json` (2014, 2017 and files of the same form) with its folder of photos."""

from collections.abc import Mapping
from typing import Any, Literal

from pixellm.data.sources.instances import InstancesSource
from pixellm.data.sources.referring import Category


class CocoSource(InstancesSource):
    """COCO marks every instance of its categories, so "every dog" is complete and a category without annotation is absent."""

    name: Literal["coco"] = "coco"

    @property
    def source_name(self) -> str:
        """The `source` column of the rows."""
        return "coco"

    def build_categories(self, entries: list[dict[str, Any]]) -> dict[int, Category]:
        """Category names are used as they are."""
        return {entry["id"]: Category(entry["name"], (entry["name"],)) for entry in entries}

    def may_be_absent(self, image: Mapping[str, Any]) -> set[int]:
        """All categories."""
        return {entry["id"] for entry in self._file.categories}

    def not_exhaustive(self, image: Mapping[str, Any]) -> set[int]:
        """None: what is too many to mark one by one has a crowd region, which is `ignore`."""
        return set()
