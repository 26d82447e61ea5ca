"""Prometheus: alert rules and the configuration that reads them and finds the nodes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.validation.documents import Document, Report
from jobs.validation.metrics import problems_of_expression
from pixellm.settings import StrictModel, did_you_mean

Duration = Annotated[str, Field(pattern=r"^(\d+(ms|[smhdwy]))+$")]
SEVERITIES = ("page", "ticket")


class Rule(StrictModel):
    """An alert, or a recorded expression."""

    alert: str | None = None
    record: str | None = None
    expr: str
    for_: Duration | None = Field(default=None, alias="for")
    keep_firing_for: Duration | None = None
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _check_kind(self) -> "Rule":
        if (self.alert is None) == (self.record is None):
            raise ValueError("give a rule either `alert` or `record`")
        if self.alert and self.labels.get("severity") not in SEVERITIES:
            raise ValueError(f"labels.severity of {self.alert} is {self.labels.get('severity')!r}; write {' or '.join(SEVERITIES)}")
        if self.alert and not {"summary", "action"} <= set(self.annotations):
            raise ValueError(f"{self.alert} lacks annotations: `summary` says what is wrong, `action` what to do")
        return self


class Group(StrictModel):
    """Rules that are evaluated together."""

    name: str
    interval: Duration | None = None
    rules: tuple[Rule, ...]


class Rules(StrictModel):
    """A file of rules."""

    groups: tuple[Group, ...]


class Relabel(StrictModel):
    """How labels of a target come about."""

    source_labels: tuple[str, ...] = ()
    separator: str = ";"
    regex: str = "(.*)"
    action: Literal["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"] = "replace"
    target_label: str | None = None
    replacement: str = "$1"


class Files(StrictModel):
    """Targets from files, as Ray's dashboard writes them."""

    files: tuple[str, ...]
    refresh_interval: Duration = "5m"


class Namespaces(StrictModel):
    """Where pods are looked for."""

    names: tuple[str, ...] = ()
    own_namespace: bool = False


class Kubernetes(StrictModel):
    """Targets from Kubernetes."""

    role: Literal["pod", "service", "endpoints", "endpointslice", "node", "ingress"]
    namespaces: Namespaces = Namespaces()


class Static(StrictModel):
    """Targets by name."""

    targets: tuple[str, ...]
    labels: dict[str, str] = Field(default={})


class ScrapeConfig(StrictModel):
    """One kind of targets."""

    job_name: str
    scrape_interval: Duration = "1m"
    scrape_timeout: Duration = "10s"
    metrics_path: str = "/metrics"
    scheme: Literal["http", "https"] = "http"
    honor_labels: bool = False
    file_sd_configs: tuple[Files, ...] = ()
    kubernetes_sd_configs: tuple[Kubernetes, ...] = ()
    static_configs: tuple[Static, ...] = ()
    relabel_configs: tuple[Relabel, ...] = ()


class Global(StrictModel):
    """What holds for all."""

    scrape_interval: Duration = "1m"
    scrape_timeout: Duration = "10s"
    evaluation_interval: Duration = "1m"
    external_labels: dict[str, str] = Field(default={})


class Prometheus(StrictModel):
    """Prometheus' own configuration."""

    global_: Global = Field(default=Global(), alias="global")
    rule_files: tuple[str, ...] = ()
    scrape_configs: tuple[ScrapeConfig, ...]
    alerting: dict[str, list[dict]] = Field(default={})


def check_rules(document: Document, report: Report) -> None:
    """A file of rules: its form, and each expression."""
    report.add_problems(document, Rules)
    names: list[str] = []
    for group, _ in document.entries("groups"):
        for place, rule in document.entries(*group, "rules"):
            for problem in problems_of_expression(str(rule.get("expr", ""))):
                report.add(document, (*place, "expr"), problem)
            name = str(rule.get("alert"))
            if name in names and "alert" in rule:
                report.add(document, (*place, "alert"), f"two alerts are called {name}; give each a name of its own")
            names.append(name)


def check_scrape(document: Document, report: Report) -> None:
    """Prometheus' configuration; the rules that it reads are there."""
    report.add_problems(document, Prometheus)
    for index, name in enumerate(document.at("rule_files", default=[])):
        file = document.file.parent / str(name)
        if not Path(str(name)).is_absolute() and not file.is_file():
            there = [each.name for each in document.file.parent.iterdir()]
            report.add(document, ("rule_files", index), f"{name} does not exist; {did_you_mean(str(name), there, 'in the folder are')}")
