"""COCO: `instances_*.json` (2014, 2017 and files of the same form) with its folder of photos."""

from typing import ClassVar

from pixellm.data.sources.coco_files import CocoCategory
from pixellm.data.sources.instances import InstancesSource
from pixellm.data.sources.referring import Category


class CocoSource(InstancesSource):
    """COCO instances: 80 categories, each instance of them marked.

    So "every dog" is complete and a category without annotation is absent; what is too many to mark one by one has a crowd region.
    """

    dataset: ClassVar[str] = "coco"
    is_federated: ClassVar[bool] = False

    def build_categories(self, entries: list[CocoCategory]) -> dict[int, Category]:
        """Category names are used as they are."""
        return {entry.id: Category(entry.name, (entry.name,)) for entry in entries}
