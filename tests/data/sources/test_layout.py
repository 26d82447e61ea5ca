"""sources/layout.py"""

from pathlib import Path

import pytest

from pixellm.data.sources.layout import find_parts, version_of
from pixellm.errors import ConfigError


def test_the_first_place_that_exists_counts(tmp_path: Path) -> None:
    for name in ("b", "c", "elsewhere"):
        (tmp_path / name).mkdir()
    parts = find_parts("set", str(tmp_path), "set.zip", {"photos": ("a", "b", "c"), "masks": str(tmp_path / "elsewhere")})
    assert parts == {"photos": f"{tmp_path}/b", "masks": f"{tmp_path}/elsewhere"}


def test_one_error_names_all_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError) as caught:
        find_parts("set", str(tmp_path), "set.zip", {"photos": ("there",), "masks": ("a", "b"), "names": "/nowhere"})
    assert str(caught.value) == (f"set, input={tmp_path}: missing are the masks ({tmp_path}/a or {tmp_path}/b), the names (/nowhere); "
                                 "they come with set.zip")


def test_the_version_names_files_by_name_and_size() -> None:
    version = version_of({"/x/a.png": 3, "/x/b.png": 4}, b"names")
    assert version == version_of({"s3://y/b.png": 4, "s3://y/a.png": 3}, b"names")
    assert len({version, version_of({"/x/a.png": 3, "/x/b.png": 5}, b"names"), version_of({"/x/a.png": 3}, b"names"),
                version_of({"/x/a.png": 3, "/x/b.png": 4}, b"name")}) == 4
