"""Notices that a node is about to be taken away, which Ray gets from the cloud or from a drain of the node."""

import time

import ray.train

CHECK_INTERVAL_S = 5.0


class PreemptionNotice:
    """Asked by all workers at the same steps: Ray's own call is a barrier among them, too slow for every step."""

    def __init__(self) -> None:
        self._checked = time.monotonic()
        self._known: set[str] = set()

    def is_due(self) -> bool:
        """Whether it is time to ask again, by this worker's clock."""
        return time.monotonic() - self._checked > CHECK_INTERVAL_S

    def has_come(self) -> bool:
        """Whether a node of this run, not known before, will be taken away. All workers call it."""
        self._checked = time.monotonic()
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info is not None else set()
        is_new = bool(nodes - self._known)
        self._known |= nodes
        return is_new
