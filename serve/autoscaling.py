"""How many replicas the measured load of their engines asks for: the policy that Serve's controller calls every moment.

Serve sends this file to its controller, which need not have the project installed: only the standard library is imported. Serve itself
waits out the delays and keeps to the bounds.
"""

import math
from typing import Any

LOAD_METRIC = "engine_load"  # full batches at hand, as a replica tells it (`EngineLoad.num_batches`)
DOWN_SHARE = 0.8  # a replica goes only when those that stay would be below this share of the target: else it would soon come back
IDLE = 0.01


class EngineLoadPolicy:
    """Replicas such that each has `target_load` full batches at hand, in slots (running) and in queues (waiting cost), on average.

    Requests that no replica has taken yet count as one slot of `num_slots` each. Load is a mean over Serve's `look_back_period_s`, so a
    step of load moves the number in one direction; between two numbers it stays where it is.
    """

    def __init__(self, target_load: float, num_slots: int):
        self._target_load, self._num_slots = target_load, num_slots

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Of Serve's AutoscalingContext: the wanted number of replicas, and no state."""
        at_replicas = sum((ctx.aggregated_metrics or {}).get(LOAD_METRIC, {}).values())
        load = at_replicas + (ctx.total_queued_requests or 0.0) / self._num_slots
        return wanted_replicas(load / self._target_load, ctx.target_num_replicas), {}


def wanted_replicas(load: float, num_replicas: int) -> int:
    """`load` in replicas at their target."""
    if load > num_replicas:
        return math.ceil(load)
    if num_replicas > 1 and load < DOWN_SHARE * (num_replicas - 1):
        return max(1, math.ceil(load / DOWN_SHARE))
    return 0 if num_replicas == 1 and load < IDLE else num_replicas
