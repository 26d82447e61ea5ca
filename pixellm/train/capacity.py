"""The nodes that a run could have: the assumed ones, else the most that Ray's autoscaler may start, else those that are there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field
from ray._private import state as ray_state

from pixellm.resources import Bundle, count_placed, live_nodes
from pixellm.settings import StrictModel

LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"  # `ray up` leaves it on the head, where submitted jobs run
OBJECT_STORE_SHARE = 0.3  # of a node's memory, Ray's default


class AssumedNodes(StrictModel):
    """Some nodes of one kind."""

    count: int = Field(gt=0)
    cpus: float = Field(gt=0, description="of one node")
    gpus: float = Field(0, ge=0, description="of one node")
    memory_gb: float | None = Field(None, gt=0, description="of one node, 1e9 bytes; the object store takes 30 % of it")
    gpu_memory_gb: float | None = Field(None, gt=0, description="of one GPU, 1e9 bytes")
    price_per_hour: float | None = Field(None, ge=0, description="of one node, in any currency")

    def to_bundle(self) -> Bundle:
        """Resources of one of them; an object store that is not known has room for everything."""
        store = math.inf if self.memory_gb is None else self.memory_gb * 1e9 * OBJECT_STORE_SHARE
        return {"CPU": self.cpus, "GPU": self.gpus, "object_store_memory": store}


@dataclass(frozen=True)
class Capacity:
    """Resources of each node, and where they are known from. `prices` per hour are of each node, None where no price is known."""

    nodes: Sequence[Bundle]
    origin: str
    prices: Sequence[float | None]
    gpu_memory_gb: float | None = None

    def price_of(self, bundles: Sequence[Bundle]) -> float | None:
        """Per hour, of the fewest first nodes that hold `bundles`; None where they do not fit or a price is not known."""
        for num_nodes in range(1, len(self.nodes) + 1):
            if count_placed(bundles, self.nodes[:num_nodes]) == len(bundles):
                known = [price for price in self.prices[:num_nodes] if price is not None]
                return sum(known) if len(known) == num_nodes else None
        return None


def find_capacity(assumed: Sequence[AssumedNodes], most_nodes: int) -> Capacity:
    """A Ray cluster must be connected, unless nodes are assumed. An autoscaler without a limit counts as one of `most_nodes`."""
    if assumed:
        each_node = [kind for kind in assumed for _ in range(kind.count)]
        memory = [kind.gpu_memory_gb for kind in assumed if kind.gpu_memory_gb is not None]
        return Capacity([kind.to_bundle() for kind in each_node], "assumed", [kind.price_per_hour for kind in each_node],
                        min(memory, default=None))
    live, groups = live_nodes(), _read_reported_groups() or _read_launcher_groups()
    scaled: list[Bundle] = []
    for resources, count in groups:
        store = {"object_store_memory": resources["memory"] * OBJECT_STORE_SHARE if "memory" in resources else math.inf}
        scaled += [{**store, **resources}] * (most_nodes if count < 0 else min(count, most_nodes))
    if not scaled:
        return Capacity(live, "live", [None] * len(live))
    kinds = {_kind(resources) for resources, _ in groups}
    nodes = [*(node for node in live if _kind(node) not in kinds), *scaled]  # a live node of a group is one of its maximum
    return Capacity(nodes, f"autoscaler's maximum, {len(live)} of them live", [None] * len(nodes))


def _kind(node: Bundle) -> tuple[float, float]:
    return node.get("CPU", 0), node.get("GPU", 0)


def _read_reported_groups() -> list[tuple[Bundle, int]]:
    """Resources and greatest number of nodes of each group, -1 for any, as the cluster's platform told Ray's control store."""
    config = ray_state.state.get_cluster_config()
    return [(dict(group.resources), group.max_count) for group in config.node_group_configs] if config is not None else []


def _read_launcher_groups() -> list[tuple[Bundle, int]]:
    """The same from the file that Ray's cluster launcher leaves on the head; the whole cluster's limit holds too."""
    file = Path(LAUNCHER_FILE).expanduser()
    if not file.is_file():
        return []
    config = yaml.safe_load(file.read_text())
    left = int(config.get("max_workers", 0))
    groups: list[tuple[Bundle, int]] = []
    for name, kind in config.get("available_node_types", {}).items():
        resources = {key: float(value) for key, value in kind.get("resources", {}).items()}
        count = min(int(kind.get("max_workers", left)), left) if name != config.get("head_node_type") else 0
        if resources and count:
            groups.append((resources, count))
            left -= count
    return groups
