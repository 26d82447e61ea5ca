"""sources/__init__.py"""

import pytest

from pixellm.data.sources import SOURCES, describe_sources, source_class
from pixellm.data.sources.plan import Source
from pixellm.errors import ConfigError


def test_each_source_offers_what_the_job_calls() -> None:
    for name, source in SOURCES.items():
        assert source_class(name) is source
        assert issubclass(source, Source) and f"  {name} " in describe_sources()


def test_an_unknown_source_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'coco'\? known: ade20k, coco, .*shapes"):
        source_class("cocoo")
