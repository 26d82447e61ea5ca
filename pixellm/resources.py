"""Resources that a job asks of a Ray cluster: whether the nodes have them, the wait for nodes that do, and one task that runs with it.

A bundle is the resources of one worker, all on one node: `CPU`, `GPU` and `memory` (bytes).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pixellm.errors import PixelLMError, ResourcesError

POLL_S, TELL_EVERY_S = 2.0, 60.0
TOLERANCE = 1e-6  # Ray counts in units of 1e-4

Bundle = Mapping[str, float]
T = TypeVar("T")


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or the one that runs on this machine, else start Ray here; nothing where that is done."""
    if not ray.is_initialized():
        ray.init()


def live_nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive, free or taken."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_placed(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> int:
    """The number of `bundles`, taken in order, that find room on empty `nodes`."""
    left = [dict(node) for node in nodes]
    for number, bundle in enumerate(bundles):
        node = next((node for node in left if all(node.get(name, 0) + TOLERANCE >= amount for name, amount in bundle.items())), None)
        if node is None:
            return number
        for name, amount in bundle.items():
            node[name] -= amount
    return len(bundles)


def describe_bundle(bundle: Bundle) -> str:
    """For people: "4 CPU and 1 GPU"."""
    return " and ".join(f"{amount / 1e9:.1f} GB memory" if name == "memory" else f"{amount:g} {name}" for name, amount in bundle.items())


def describe_shortage(bundles: Sequence[Bundle], what: str) -> str | None:
    """A description of what the live nodes lack for `bundles`, with both numbers; None where they have all of it, free or taken."""
    nodes = live_nodes()
    num_placed = count_placed(bundles, nodes)
    if num_placed == len(bundles):
        return None
    names = list(dict.fromkeys(name for bundle in bundles for name in bundle))
    total = describe_bundle({name: sum(node.get(name, 0) for node in nodes) for name in names})
    largest = describe_bundle({name: max((node.get(name, 0) for node in nodes), default=0) for name in names})
    counts = {describe_bundle(bundle): bundles.count(bundle) for bundle in bundles}
    asked = ", ".join(f"{count} x ({each})" for each, count in counts.items())
    return (f"{what} needs {asked}, each on one node; the {len(nodes)} nodes that are there have {total} in all, at most {largest} on one, "
            f"and room for {num_placed} of the {len(bundles)}")


def wait_for_room(bundles: Sequence[Bundle], what: str, patience_s: float, say: Callable[[str], object] = print) -> None:
    """Return when all `bundles` have free room, and say what is missing until then. Asking for it also makes a cluster scale up.

    Raises ResourcesError when no nodes that have it came in `patience_s`. Nodes that have it and are busy are waited for longer.
    """
    connect()
    begun = missing_since = time.monotonic()
    next_word = begun + POLL_S
    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        while not group.wait(min(POLL_S, patience_s)):
            now, shortage = time.monotonic(), describe_shortage(bundles, what)
            if shortage is None:
                missing_since = now
            elif now - missing_since >= patience_s:
                raise ResourcesError(f"{shortage}; no other node came in {patience_s:g} s (resource_wait_s). Add nodes, or ask for less")
            if now >= next_word:
                next_word = now + TELL_EVERY_S
                reason = shortage or f"the nodes that have what {what} needs are busy"
                say(f"waiting for nodes since {now - begun:.0f} s: {reason}")
    finally:
        remove_placement_group(group)


def run_task(function: Callable[..., T], *arguments: Any, bundle: Bundle, what: str, patience_s: float, near: bool = False,
             say: Callable[[str], object] = print) -> T:
    """`function(*arguments)` in a Ray task that has `bundle`. `near`: on the node of the caller if that is large enough, for local files.

    Raises what the function raises (a PixelLMError as itself), and ResourcesError: no such node, or more memory used than was there.
    """
    wait_for_room([bundle], what, patience_s, say)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    task = ray.remote(function).options(
        num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0) or None, memory=int(bundle.get("memory", 0)) or None, max_retries=0,
        scheduling_strategy=here if near else "DEFAULT")
    try:
        return ray.get(task.remote(*arguments))
    except RayTaskError as error:
        if isinstance(error.cause, PixelLMError):
            raise error.cause from None
        raise
    except (OutOfMemoryError, WorkerCrashedError) as error:
        raise ResourcesError(f"{what} was ended with {describe_bundle(bundle)}, most likely for its memory: "
                             f"{str(error).splitlines()[0]}; give it a node with more") from None
