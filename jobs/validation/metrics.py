"""PromQL: that an expression parses, and that what it names is exported: by training, by serving, or by Ray itself."""

import re
from functools import cache
from typing import Any

import promql_parser
from ray.dashboard.modules.metrics.dashboards import common, default_dashboard_panels, serve_dashboard_panels, train_dashboard_panels

from pixellm.settings import did_you_mean
from pixellm.train.metric_names import METRICS as TRAIN_METRICS
from serve.metrics import METRICS as SERVE_METRICS

EVERYWHERE = {"NodeAddress", "SessionName", "Version", "WorkerId", "Component", "job", "instance", "le"}  # by Ray and Prometheus
RULES_OF_PROMETHEUS = {"up", "ALERTS"}


@cache
def exported() -> dict[str, set[str] | None]:
    """Each metric that this project exports, with its labels, and those of Ray that Ray's own boards name, whose labels are not known."""
    names: dict[str, set[str] | None] = dict.fromkeys(RULES_OF_PROMETHEUS)
    for module in (default_dashboard_panels, serve_dashboard_panels, train_dashboard_panels):
        for panel in _panels(module):
            names |= dict.fromkeys(re.findall(r"\b(ray_\w+)(?=\{)", " ".join(target.expr for target in panel.targets)))
    names |= {f"ray_{metric.name}": {"run", *metric.labels} for metric in TRAIN_METRICS}
    for name, spec in SERVE_METRICS.items():
        endings = {"Counter": ("_total",), "Histogram": ("_bucket", "_sum", "_count")}.get(spec.kind.__name__, ("",))
        names |= {f"ray_{name}{ending}": set(spec.tags) for ending in endings}
    return names


def _panels(module: Any) -> list[Any]:
    boards = [value for value in vars(module).values() if isinstance(value, common.DashboardConfig)]
    return [panel for board in boards for holder in [board, *(board.rows or ())] for panel in holder.panels or ()]


def problems_of_expression(expression: str) -> list[str]:
    """What is wrong with one expression."""
    try:
        tree = promql_parser.parse(expression)
    except ValueError as error:
        return [f"{expression!r} is no PromQL: {error}; correct it"]
    problems = []
    for selector in selectors(tree):
        name = selector.name
        if name is None:
            problems.append(f"{expression!r}: a selector without a metric; name one")
        elif name not in exported():
            problems.append(f"{name}: nothing exports it; {did_you_mean(name, exported(), 'known')}")
        else:
            labels = exported()[name]
            for matcher in selector.matchers.matchers:
                if labels is not None and matcher.name not in labels | EVERYWHERE:
                    near = did_you_mean(matcher.name, sorted(labels | EVERYWHERE), "it has")
                    problems.append(f"{name} has no label {matcher.name!r}; {near}")
    return problems


def selectors(tree: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    """All of an expression, those of ranges too."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(tree, pre_visit=visit)
    return found
