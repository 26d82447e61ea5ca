"""A run whose controller fails: with a stand-in for Ray's trainer; `tests/ray/test_training_failures.py` kills a real one."""

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError

from pixellm.train import trainer
from tests.train.examples import make_config


class FailingTrainer:
    """Raises each of `errors` once, then is done."""

    def __init__(self, errors):
        self.errors = list(errors)

    def fit(self):
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def failing(monkeypatch):
    def install(*errors):
        stand_in = FailingTrainer(errors)
        monkeypatch.setattr(trainer, "build_trainer", lambda config, base_uri: stand_in)
        monkeypatch.setattr(trainer, "RESTART_PAUSE_S", 0.0)
        return stand_in

    return install


def test_a_controller_that_fails_or_dies_is_started_again(failing, capsys):
    failing(ControllerError(RuntimeError("timed out")), RayActorError())
    assert trainer.fit(make_config(max_failures=2), "base") == "done"
    assert capsys.readouterr().out.count("starting again after failure") == 2


def test_it_ends_after_max_failures_and_other_errors_at_once(failing):
    stand_in = failing(*[ControllerError(RuntimeError("again")) for _ in range(3)])
    with pytest.raises(ControllerError, match="again"):
        trainer.fit(make_config(max_failures=1), "base")
    assert len(stand_in.errors) == 1
    failing(ValueError("ours"))
    with pytest.raises(ValueError, match="ours"):
        trainer.fit(make_config(max_failures=5), "base")
