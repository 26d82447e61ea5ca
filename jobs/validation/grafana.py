"""Grafana boards: panels that have a place and an expression, variables that exist, and metrics that somebody exports."""

import re

from jobs.validation.documents import Document, Place, Report
from jobs.validation.metrics import problems_of_expression
from pixellm.settings import did_you_mean

COLUMNS = 24
PANELS = ("timeseries", "stat", "gauge", "bargauge", "barchart", "table", "heatmap", "histogram", "state-timeline", "text", "row")
OF_GRAFANA = {"__rate_interval": "5m", "__interval": "1m", "__range": "1h"}


def check_board(document: Document, report: Report) -> None:
    """One board."""
    for key in ("title", "uid"):
        if not document.at(key):
            report.add(document, (key,), f"the board has no {key}; give it one")
    variables = [str(each.get("name")) for _, each in document.entries("templating", "list")]
    for place, variable in document.entries("templating", "list"):
        query = re.fullmatch(r"label_values\((.+), *\w+\)", str(variable.get("query")))
        if variable.get("type") == "query" and query:
            _check_expression(document, (*place, "query"), query[1], variables, report)
    ids: list[object] = []
    for place, panel in document.entries("panels"):
        if panel.get("id") in ids:
            report.add(document, (*place, "id"), f"two panels have the id {panel.get('id')}; number them")
        ids.append(panel.get("id"))
        _check_panel(document, place, variables, report)


def _check_panel(document: Document, place: Place, variables: list[str], report: Report) -> None:
    kind, title = document.at(*place, "type"), document.at(*place, "title")
    if kind not in PANELS:
        report.add(document, (*place, "type"), f"panel {title!r}: {kind!r} is no panel; {did_you_mean(str(kind), PANELS, 'they are')}")
    x, width = document.at(*place, "gridPos", "x", default=0), document.at(*place, "gridPos", "w", default=0)
    if not width or x + width > COLUMNS:
        report.add(document, (*place, "gridPos"), f"panel {title!r} reaches column {x + width} of {COLUMNS}; correct gridPos")
    targets = list(document.entries(*place, "targets"))
    if not targets and kind not in ("row", "text"):
        report.add(document, place, f"panel {title!r} has no targets; give it an expression")
    for at, target in targets:
        _check_expression(document, (*at, "expr"), str(target.get("expr", "")), variables, report)


def _check_expression(document: Document, place: Place, expression: str, variables: list[str], report: Report) -> None:
    for name in re.findall(r"\$\{?(\w+)", expression):
        if name not in OF_GRAFANA and name not in variables:
            report.add(document, place, f"there is no variable ${name}; {did_you_mean(name, variables, 'the board has')}")
    plain = re.sub(r"\$\{?(\w+)\}?", lambda found: OF_GRAFANA.get(found[1], ".*"), expression)
    for problem in problems_of_expression(plain):
        report.add(document, place, problem)


def check_provisioning(document: Document, report: Report) -> None:
    """How Grafana finds its data source and its boards: the keys that matter are there."""
    for key, needed in (("datasources", ("name", "type", "url")), ("providers", ("name", "type", "options"))):
        for place, entry in document.entries(key):
            for name in needed:
                if name not in entry:
                    report.add(document, place, f"an entry of {key} has no {name}; Grafana would not start with it")
