"""Every metric and label that a board or an alert names is exported: a training and a deployment run, and Ray's /metrics is read."""

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import httpx
import promql_parser
import pytest
import ray
import yaml
from ray import serve as ray_serve

from jobs import train as job
from jobs.validation.metrics import EVERYWHERE, RULES_OF_PROMETHEUS, selectors
from pixellm.train.metric_names import METRICS
from serve.app import build_application
from serve.config import AppConfig
from tests.conftest import ROOT
from tests.ray.test_serve import free_port
from tests.ray.training_runs import write_scenes
from tests.serve.doubles import build_rule_segmenter
from tests.serve.test_ingress import as_form, photo_bytes

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # 2 minutes on two cores that others use, too
FOLDER = ROOT / "platform/observability"
OF_PROMETHEUS = {"job", "instance"}  # which it adds itself
SAMPLE = re.compile(r"^(\w+)\{(.*)\} \S+$")


def expressions() -> Iterator[tuple[str, str]]:
    """Where each one is, and the expression as Prometheus gets it."""
    for file in sorted((FOLDER / "grafana/boards").glob("*.json")):
        board = json.loads(file.read_text())
        found = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
        found += [(each["name"], each["query"][len("label_values("):].partition(",")[0]) for each in board["templating"]["list"][1:]]
        yield from ((f"{file.stem}: {title}", re.sub(r"\$__\w+", "5m", text)) for title, text in found)
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]:
        yield from ((f"alert {rule['alert']}", rule["expr"]) for rule in group["rules"])


class Scraper(threading.Thread):
    """Reads all that is exported again and again: the gauges of a training are gone when it is."""

    def __init__(self, port: int):
        super().__init__(daemon=True)
        self.labels: dict[str, set[str]] = defaultdict(set)
        self._url, self.done = f"http://127.0.0.1:{port}/metrics", threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            for line in httpx.get(self._url, timeout=30).text.splitlines():
                if sample := SAMPLE.match(line):
                    self.labels[sample[1]] |= set(re.findall(r'(\w+)="', sample[2]))


@pytest.fixture(scope="module")
def exported(local_ray, tmp_path_factory) -> dict[str, set[str]]:
    """The labels of every metric of a system that has trained and served."""
    scraper = Scraper(ray.nodes()[0]["MetricsExportPort"])
    scraper.start()
    folder = tmp_path_factory.mktemp("metrics")
    shards = write_scenes(folder / "shards")
    values = {"run": "seen", "storage": str(folder / "runs"), "data": f"[{shards}]", "model": "tiny", "photos_per_micro_step": 2,
              "max_conversations_per_photo": 1, "warmup_steps": 1, "log_every_steps": 1, "steps": 2, "num_workers": 1, "cpus_per_worker": 1,
              "stream_memory_mb": 16, "checkpoint_every_steps": 2, "telemetry.peak_tflops": 1,
              "validation": f"{{shards: {shards}, max_rows: 2, max_new_tokens: 4, cpus_per_worker: 1}}"}
    job.main([f"{key}={value}" for key, value in values.items()])
    config = AppConfig(model="models/test", engine={"num_slots": 4}, max_ongoing_requests=8, max_body_mb=1, num_cpus=0.5, port=free_port())
    try:
        ray_serve.start(http_options={"host": config.host, "port": config.port})
        ray_serve.run(build_application(config, build_rule_segmenter), name=config.app_name)
        url, photo = f"http://{config.host}:{config.port}/v1/segment", photo_bytes()
        for body, status in ((as_form(photo), 200), (as_form(photo, stream="true"), 200), (as_form(b"no photo"), 415)):
            assert httpx.post(url, timeout=120, **body).status_code == status
        deadline = time.monotonic() + 60
        while "ray_pixellm_serve_masks_total" not in scraper.labels or "ray_pixellm_serve_rejections_total" not in scraper.labels:
            assert time.monotonic() < deadline, sorted(scraper.labels)
            time.sleep(0.5)
        time.sleep(6)  # Ray exports every few seconds, each process for itself
    finally:
        ray_serve.shutdown()
        scraper.done.set()
        scraper.join()
    return dict(scraper.labels)


@pytest.mark.timeout(900)
def test_all_of_training_is_exported(exported):
    """Its validation too."""
    names = {f"ray_{metric.name}": set(metric.labels) for metric in METRICS}
    missing = {name for name, labels in names.items() if not labels | {"run"} <= exported.get(name, set())}
    assert not missing


def test_what_boards_and_alerts_name_is_exported(exported):
    assert len(list(expressions())) > 50
    wrong = []
    for where, text in expressions():
        tree = promql_parser.parse(text)
        wanted: list[tuple[str, str]] = []

        def visit(node: promql_parser.Expr, wanted: list[tuple[str, str]] = wanted) -> None:
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                wanted += [(selector.name, label) for selector in selectors(node.expr) for label in node.modifier.labels]

        promql_parser.walk(tree, pre_visit=visit)
        for selector in selectors(tree):
            if selector.name in RULES_OF_PROMETHEUS:
                continue
            if selector.name not in exported:
                wrong.append(f"{where}: nothing exports {selector.name}")
            wanted += [(selector.name, matcher.name) for matcher in selector.matchers.matchers]
        wrong += [f"{where}: {name} has no label {label}" for name, label in wanted
                  if name in exported and label not in exported[name] | OF_PROMETHEUS]
    assert not wrong, "\n".join(wrong)


def test_labels_that_are_taken_for_everywhere_are(exported):
    assert exported["ray_pixellm_serve_request_seconds_bucket"] >= EVERYWHERE - OF_PROMETHEUS
