"""sources/__init__.py"""

import pytest

from pixellm.data.sources import SOURCES, source_class
from pixellm.errors import ConfigError


def test_each_source_offers_what_the_job_calls() -> None:
    for name, source in SOURCES.items():
        assert source_class(name) is source
        assert source.model_fields["name"].default == name
        assert all(callable(getattr(source, method)) for method in ("read_rows", "num_rows", "version"))


def test_an_unknown_source_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'coco'\? known: coco, lvis, shapes"):
        source_class("cocoo")
