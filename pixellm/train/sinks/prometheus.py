"""Figures as gauges of Ray's metrics, which every node's agent exports to Prometheus."""

from collections.abc import Mapping

from PIL import Image
from ray.util.metrics import Gauge

from pixellm.train.metric_names import metric_of


class PrometheusSink:
    """One gauge for each metric of metric_names.py that the run publishes."""

    def __init__(self, run: str):
        self.run = run
        self._gauges: dict[str, Gauge] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The last value holds until the next."""
        for tag, value in values.items():
            metric, labels = metric_of(tag)
            if metric.name not in self._gauges:
                self._gauges[metric.name] = Gauge(metric.name, description=metric.description, tag_keys=("run", *metric.labels))
            self._gauges[metric.name].set(value, tags={"run": self.run} | labels)

    def write_picture(self, step: int, tag: str, picture: Image.Image) -> None:
        """Prometheus takes none."""

    def flush(self) -> None:
        """Ray exports by itself."""

    def close(self) -> None:
        """Nothing is held."""
