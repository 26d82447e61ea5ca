"""progress.py"""

import pytest

from pixellm.data.progress import progress_line, show_progress


def test_items_pass_and_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(show_progress(range(4), "rows", 2, counts=lambda item: item % 2 == 0, interval_s=0)) == [0, 1, 2, 3]
    assert capsys.readouterr().out.splitlines()[-1].startswith("rows: 2 of 2, ")


def test_time_left_is_said_where_the_total_is_known() -> None:
    assert progress_line("rows", 1200, 5000, 5.0) == "rows: 1,200 of 5,000, 240.0/s, about 16 s left"
    assert progress_line("rows", 10, None, 5.0) == "rows: 10, 2.0/s"
    assert progress_line("rows", 0, 10, 5.0) == "rows: 0 of 10, 0.0/s"
