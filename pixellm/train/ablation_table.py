"""The table of an ablation: means over seeds, and differences to the first variant with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
FIGURES = {"giou": "gIoU", "ciou": "cIoU", "wrong_count_share": "wrong number of masks"}


@dataclass(frozen=True)
class Mean:
    """Over seeds, with the interval of Student's t."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does."""
        return self.low > 0 or self.high < 0


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Of at least two values, which are taken to be normal: few seeds give wide intervals."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Mean(mean, mean - half, mean + half)


def difference(one: Sequence[float], other: Sequence[float]) -> Mean:
    """Of `other` minus `one`, seed by seed: a seed's order of scenes is the same for both."""
    return mean_over_seeds([b - a for a, b in zip(one, other, strict=True)])


def build_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each variant: of each figure the `mean`, and for all but the first the `difference`, both as Mean."""
    base = next(iter(results))
    rows = []
    for name, trials in results.items():
        row: dict[str, Any] = {"variant": name, "share_from_warm_start": trials[0]["share_from_warm_start"]}
        for figure in FIGURES:
            values = [trial[figure] for trial in trials]
            row[figure] = {"mean": mean_over_seeds(values), "values": values,
                           "difference": None if name == base else difference([trial[figure] for trial in results[base]], values)}
        rows.append(row)
    return rows


def to_markdown(rows: Sequence[Mapping[str, Any]], about: str) -> str:
    """A direction is written only where the interval of the difference excludes 0."""
    columns = " | ".join(f"{shown} | against {rows[0]['variant']}" for shown in FIGURES.values())
    lines = ["# Ablation", "", about, "", f"| variant | {columns} | from the warm start |",
             "| --- |" + " ---: | --- |" * len(FIGURES) + " ---: |"]
    for row in rows:
        cells = [cell for figure in FIGURES for cell in (_shown(row[figure]["mean"]), _verdict(row[figure]["difference"]))]
        lines.append(f"| {row['variant']} | {' | '.join(cells)} | {row['share_from_warm_start']:.1%} |")
    return "\n".join(lines) + "\n"


def _shown(mean: Mean) -> str:
    return f"{mean.value:.3f} ± {mean.high - mean.value:.3f}"


def _verdict(found: Mean | None) -> str:
    if found is None:
        return ""
    claim = ("**more**" if found.value > 0 else "**less**") if found.excludes_zero else "not told apart"
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}) {claim}"
