"""The policy behind a clock of the test's: Serve's own bounds and delays around it, a plant that queues and serves."""

import itertools
import random
from types import SimpleNamespace

import pytest
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig as ServeAutoscalingConfig

from pixellm.inference.load import EngineLoad
from serve import autoscaling
from serve.autoscaling import DOWN_SHARE, LOAD_METRIC, EngineLoadPolicy, wanted_replicas

SLOTS, ANSWER_S, START_S, LOOK_BACK_S = 4, 2.0, 20, 30


def simulate(users_at, seconds: int, monkeypatch, seed: int = 0, max_replicas: int = 4, min_replicas: int = 1) -> list[tuple[float, int]]:
    """(load, replicas) of each second, with `users_at(second)` x SLOTS clients that ask again when they have their answer.

    An answer takes about ANSWER_S in a slot, a replica START_S to start, and the policy sees means over LOOK_BACK_S.
    """
    draw, clock = random.Random(seed), [0.0]
    monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: clock[0])
    config = ServeAutoscalingConfig(min_replicas=min_replicas, max_replicas=max_replicas, upscale_delay_s=10, downscale_delay_s=60)
    policy = _apply_autoscaling_config(EngineLoadPolicy(target_load=1.0, num_slots=SLOTS))
    target, state, starting, running, history = 1, {}, [], [[]], []
    seen = []
    for second in range(seconds):
        clock[0] = float(second)
        num_clients = round(users_at(second) * SLOTS)
        for replica in running:
            replica[:] = [left - draw.uniform(0.5, 1.5) for left in replica if left > 0]
            replica[:] = [left for left in replica if left > 0]
        in_flight = sum(map(len, running))
        for _ in range(num_clients - in_flight):  # to the emptiest replica, as Serve's router does
            min(running, key=len).append(ANSWER_S * draw.uniform(0.5, 1.5) * (1 + len(min(running, key=len)) / SLOTS))
        loads = [EngineLoad(SLOTS, min(len(each), SLOTS), max(0, len(each) - SLOTS), 100.0 * min(len(each), SLOTS),
                            100.0 * max(0, len(each) - SLOTS)).num_batches for each in running]
        seen.append(sum(loads))
        mean = sum(seen[-LOOK_BACK_S:]) / len(seen[-LOOK_BACK_S:])
        context = SimpleNamespace(aggregated_metrics={LOAD_METRIC: {"all": mean}}, total_queued_requests=0.0, total_num_requests=in_flight,
                                  current_num_replicas=len(running), target_num_replicas=target, config=config, policy_state=state)
        wanted, state = policy(context)
        wanted = max(min_replicas, min(max_replicas, wanted))
        starting += [second + START_S] * (wanted - target)
        if wanted < target:
            starting = starting[:max(0, wanted - len(running))]
            while len(running) > wanted:
                gone = running.pop()
                running[0] += gone
        target = wanted
        running += [[] for at in starting if at <= second]
        starting = [at for at in starting if at > second]
        history.append((seen[-1], target))
    return history


def changes_of_direction(replicas: list[int]) -> int:
    moves = [after - before for before, after in itertools.pairwise(replicas) if after != before]
    return sum((one > 0) != (other > 0) for one, other in itertools.pairwise(moves))


@pytest.mark.parametrize("seed", range(5))
def test_steps_of_load_move_the_replicas_once_and_in_one_direction(seed, monkeypatch):
    step_s = 300
    history = simulate(lambda second: 3.2 if second // step_s % 2 else 0.4, 6 * step_s, monkeypatch, seed)
    replicas = [number for _, number in history]
    for step in range(6):
        during = replicas[step * step_s:(step + 1) * step_s]
        assert changes_of_direction(during) <= 1
        assert during[-1] == (4 if step % 2 else 1)


def test_noise_around_a_boundary_does_not_flap(monkeypatch):
    draw = random.Random(1)
    history = simulate(lambda second: draw.choice([1.8, 2.0, 2.1]), 1800, monkeypatch)
    assert changes_of_direction([number for _, number in history]) <= 1


@pytest.mark.parametrize("load, num_replicas, wanted", [
    (0.9, 1, 1), (1.01, 1, 2), (3.2, 1, 4), (1.0, 2, 2), (0.79, 2, 1), (0.81, 2, 2), (0.1, 4, 1), (1.7, 4, 3), (0.0, 1, 0), (0.02, 1, 1),
    (0.0, 3, 1), (0.5, 0, 1)])
def test_what_a_load_asks_for(load, num_replicas, wanted):
    assert wanted_replicas(load, num_replicas) == wanted


def test_what_is_wanted_is_wanted_still_when_it_is_there():
    for load in [each / 37 for each in range(1, 400)]:
        for num_replicas in range(1, 12):
            settled = wanted_replicas(load, num_replicas)
            assert wanted_replicas(load, settled) == settled and load <= settled
            assert settled >= num_replicas or load <= DOWN_SHARE * settled


def test_requests_that_no_replica_has_count_too():
    policy = EngineLoadPolicy(target_load=1.0, num_slots=4)
    context = SimpleNamespace(aggregated_metrics=None, total_queued_requests=12.0, target_num_replicas=1)
    assert policy(context) == (3, {})
    context.aggregated_metrics = {LOAD_METRIC: {"a": 1.0, "b": 0.5}, "other": {"a": 99.0}}
    assert policy(context) == (5, {})


def test_load_is_in_full_batches_by_cost():
    assert EngineLoad(4).num_batches == 0
    assert EngineLoad(4, num_running=2, running_cost=50).num_batches == 0.5
    assert EngineLoad(4, 4, 2, running_cost=400, waiting_cost=200).num_batches == 1.5
    assert EngineLoad(4, 4, 2, running_cost=400, waiting_cost=800).num_batches == 3  # two that are four times as long
    assert EngineLoad(4, 0, 3, waiting_cost=30).num_batches == 0.75


def test_the_policy_needs_nothing_that_the_controller_may_lack():
    assert {name for name, value in vars(autoscaling).items() if type(value).__name__ == "module"} <= {"math"}
