"""How much an engine has to do, in one picture that other threads may look at. Knows neither model nor Ray."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLoad:
    """Requests in slots and in the queue, what they cost (rows of the forward that they were admitted for), and totals since the start."""

    num_slots: int
    num_running: int = 0
    num_waiting: int = 0
    running_cost: float = 0.0
    waiting_cost: float = 0.0
    num_photo_hits: int = 0  # requests whose photo was in the cache
    num_photo_misses: int = 0

    @property
    def num_batches(self) -> float:
        """Work at hand in full batches: the share of slots that are taken, plus what waits, in answers like those that run.

        1 is an engine that is busy while nobody waits; 3 one where two more full batches wait.
        """
        num_requests, cost = (self.num_running, self.running_cost) if self.num_running else (self.num_waiting, self.waiting_cost)
        if not num_requests:
            return 0.0
        return (self.num_running + self.waiting_cost * num_requests / cost) / self.num_slots
