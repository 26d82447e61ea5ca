"""What the validations of a run found, in the run's folder: checkpoints come and go. By it training decides to stop early."""

import json
from dataclasses import dataclass

from pixellm.errors import PixelLMError
from pixellm.storage import exists, join_uri, read_bytes, write_bytes
from pixellm.train.config import TrainConfig
from pixellm.train.retention import SCORE

HISTORY = "validations.json"


@dataclass
class History:
    """Results of a run by step, in the order of validating; a failed one has no gIoU."""

    run_uri: str
    entries: list[dict[str, float]]

    @classmethod
    def read(cls, run_uri: str) -> "History":
        """What lies in the run's folder; empty where nothing does."""
        uri = join_uri(run_uri, HISTORY)
        return cls(run_uri, json.loads(read_bytes(uri)) if exists(uri) else [])

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Write it with one entry more; a step that is validated again has its last result."""
        self.entries = [entry for entry in self.entries if entry["step"] != step] + [{"step": step, **metrics}]
        write_bytes(join_uri(self.run_uri, HISTORY), json.dumps(self.entries, indent=1).encode())

    @property
    def scores(self) -> list[tuple[float, float]]:
        """(step, gIoU) in the order of steps."""
        return sorted((entry["step"], entry[SCORE]) for entry in self.entries if SCORE in entry)

    @property
    def num_failures(self) -> int:
        """Validations without a result."""
        return sum(SCORE not in entry for entry in self.entries)

    def is_over(self, patience: int) -> bool:
        """Whether the last `patience` checkpoints that have a gIoU were all no better than the best before them."""
        scores = [score for _, score in self.scores]
        return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def is_over(config: TrainConfig) -> bool:
    """Whether a run stops early. A storage that does not answer says no: the next checkpoint asks again."""
    if config.validation is None or config.validation.patience is None:
        return False
    try:
        return History.read(config.run_uri).is_over(config.validation.patience)
    except PixelLMError:
        return False
