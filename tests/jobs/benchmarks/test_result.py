"""What a case and a table say of their values."""

import json

import numpy as np
import pytest

from jobs.benchmarks.result import BenchmarkConfig, BenchmarkReport, BenchmarkResult, Case, Table


def test_median_and_quartiles_are_numpys():
    values = tuple(np.random.default_rng(0).random(11))
    case = Case("a", "s", values)
    assert case.median == pytest.approx(np.median(values)) and case.quartiles == pytest.approx(tuple(np.percentile(values, [25, 75])))
    assert case.to_dict()["spread"] == pytest.approx(np.subtract(*np.percentile(values, [75, 25]))) and case.to_dict()["num"] == 11


def test_one_value_has_no_spread():
    assert Case("a", "s", (3.0,)).to_dict() == {
        "unit": "s", "median": 3.0, "spread": 0.0, "quartiles": [3.0, 3.0], "min": 3.0, "max": 3.0, "num": 1}


def test_a_table_is_aligned_in_plain_text():
    lines = Table("Sizes", ("part", "parameters"), [("tower", 1_234_567), ("all", 12)]).to_markdown().splitlines()
    assert lines == ["## Sizes", "", "| part  | parameters |", "| ----- | ---------: |", "| tower |  1,234,567 |", "| all   |         12 |"]


def test_a_report_holds_every_case_and_the_headline():
    config = BenchmarkConfig(suite="size", quick=True)
    result = BenchmarkResult({"ratio": 2.5}, [Case("a", "s", (1.0, 2.0, 3.0))])
    report = BenchmarkReport(config, "python -m jobs.benchmark suite=size", result)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["ratio"] == 2.5 and found["cases"]["a"]["median"] == 2.0 and found["settings"]["quick"] is True
    text = report.to_markdown()
    assert "A quick run" in text and "| ratio |   2.5 |" in text and report.command in text


def test_a_headline_cannot_hide_the_reports_own_keys():
    with pytest.raises(AssertionError, match="hide"):
        BenchmarkReport(BenchmarkConfig(suite="size"), "", BenchmarkResult({"machine": 1})).to_dict()
