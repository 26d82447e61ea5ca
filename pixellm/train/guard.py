"""Which steps are taken: not those whose loss is no number or far above what it was. All workers see the same loss, and decide alike."""

import math

from pixellm.errors import DivergedError
from pixellm.train.config import FailureSettings

MEMORY_STEPS = 50  # the running mean forgets a step after about so many
FIRST_STEPS = 20  # before so many are known nothing is called unlikely


class StepGuard:
    """The running mean of the loss, and how many steps were skipped. `state` is for a checkpoint: a resumed run decides alike."""

    def __init__(self, settings: FailureSettings, mean_loss: float = 0.0, num_losses: int = 0, num_skipped: int = 0):
        self.settings = settings
        self.mean_loss, self.num_losses, self.num_skipped = mean_loss, num_losses, num_skipped
        self.skipped_in_a_row = 0

    @property
    def state(self) -> dict[str, float | int]:
        """Arguments besides the settings."""
        return {"mean_loss": self.mean_loss, "num_losses": self.num_losses, "num_skipped": self.num_skipped}

    def accepts(self, loss: float) -> bool:
        """Whether a step of this loss (of the whole global batch) may be taken."""
        limit = self.settings.loss_limit * self.mean_loss if self.num_losses >= FIRST_STEPS else math.inf
        return math.isfinite(loss) and loss <= limit

    def note(self, step: int, loss: float, was_taken: bool) -> None:
        """What became of a step. Raises DivergedError when too many in a row were skipped."""
        if was_taken:
            self.num_losses += 1
            self.mean_loss += (loss - self.mean_loss) / min(self.num_losses, MEMORY_STEPS)
            self.skipped_in_a_row = 0
            return
        self.num_skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.settings.max_skipped_steps:
            raise DivergedError(
                f"the loss of step {step} is {loss:.4g}, its running mean was {self.mean_loss:.4g}: {self.skipped_in_a_row} steps in a row "
                f"were skipped ({self.num_skipped} in all), failures.max_skipped_steps is {self.settings.max_skipped_steps}; look at the "
                "rows of these steps and at the gradient norm before them, and go on under another `run` with lower learning_rates, a "
                "longer warm-up or clip_norm")
