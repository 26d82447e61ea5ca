"""Which row comes when: shares, order, and that no kill, resume or change of workers repeats or loses a row."""

import dataclasses
import math
import random
from collections import Counter

import pytest

from pixellm.data.mixture import BATCHES_PER_WINDOW, DataPosition, Mixture, MixtureSet, RowGroup, lanes_of_worker
from pixellm.data.spans import StreamedRow
from pixellm.data.stream import build_window
from pixellm.errors import ConfigError, ShardError

SEED = 7


def make_set(name, sizes, weight=None):
    return MixtureSet(name, tuple(RowGroup(f"{name}/shard-0", i, size, size) for i, size in enumerate(sizes)), weight, name)


def rows_of(mixture, lane, start, stop):
    """(epoch, set, row group, row in it, visit) of each row."""
    orders = {}
    found = []
    for span, place in mixture.rows(lane, start, stop):
        if span not in orders:
            orders[span] = span.order(mixture.seed)
        found.append((span.epoch, span.group.uri, span.group.index, int(orders[span][place]), span.visit))
    return found


def epochs_of(mixture, num_epochs):
    """All rows of each of the first epochs, over all lanes."""
    rows = [row for lane in range(mixture.num_lanes) for row in rows_of(mixture, lane, 0, lane_rows(mixture, lane) * num_epochs)]
    return [Counter(row[1:] for row in rows if row[0] == epoch) for epoch in range(num_epochs)]


def lane_rows(mixture, lane):
    return next(row for row in range(1, mixture.rows_per_epoch + 2) if mixture.epoch_of(lane, row)[0] == 1)


@pytest.mark.parametrize("num_lanes", [1, 2, 5, 24])
def test_without_weights_an_epoch_holds_every_row_once(num_lanes):
    mixture = Mixture([make_set("a", [7, 3, 9]), make_set("b", [4]), make_set("c", [1])], SEED, num_lanes)
    for epoch in epochs_of(mixture, 2):
        assert len(epoch) == 24 and set(epoch.values()) == {1}
    lengths = [lane_rows(mixture, lane) for lane in range(num_lanes)]
    assert sum(lengths) == 24 and max(lengths) - min(lengths) <= 1


def test_weights_are_shares_and_small_sets_are_repeated():
    mixture = Mixture([make_set("large", [50, 50], 3), make_set("small", [6, 4], 1)], SEED, 4)
    assert mixture.rows_of_set == [100, 33]
    epoch = epochs_of(mixture, 1)[0]
    large = [row for row in epoch if row[0].startswith("large")]
    assert len(large) == 100 and set(epoch.values()) == {1}
    visits = Counter(row[-1] for row in epoch if row[0].startswith("small"))
    assert visits == {0: 10, 1: 10, 2: 10, 3: 3}
    assert Mixture([make_set("a", [10], 1), make_set("b", [10], 1)], SEED, 1, epoch_rows=7).rows_of_set == [4, 4]


def test_the_shares_hold_in_every_stretch():
    mixture = Mixture([make_set("a", [300], 3), make_set("b", [100], 1)], SEED, 2)
    for lane in range(2):
        found = [row[1].startswith("b") for row in rows_of(mixture, lane, 0, lane_rows(mixture, lane))]
        assert all(abs(sum(found[i:i + 20]) - 5) <= 1 for i in range(len(found) - 20))


def test_order_follows_from_seed_and_epoch():
    sets = [make_set("a", [20, 20])]
    first = rows_of(Mixture(sets, SEED, 2), 0, 0, 20)
    assert rows_of(Mixture(sets, SEED, 2), 0, 0, 20) == first
    assert rows_of(Mixture(sets, SEED + 1, 2), 0, 0, 20) != first
    later = rows_of(Mixture(sets, SEED, 2), 0, 20, 40)
    assert [row[1:] for row in later] != [row[1:] for row in first] and {row[0] for row in later} == {1}


class KeepRows:
    """A builder that keeps the rows; the length of a row is arbitrary, so that ordering by it does something."""

    def length(self, row):
        return hash(row.key) % 5

    def build(self, rows):
        return [(row.epoch, row.key) for row in rows]


class Worker:
    """What BatchStream does, without Ray."""

    def __init__(self, mixture, lanes, position):
        self.mixture, self.lanes, self.position = mixture, lanes, position

    def __iter__(self):
        batch, number = self.position.rows_per_batch, self.position.batches_per_lane // BATCHES_PER_WINDOW
        while True:
            built = []
            for lane in self.lanes:
                size = BATCHES_PER_WINDOW * batch
                rows = [StreamedRow({}, row[0], repr(row[1:])) for row in rows_of(self.mixture, lane, number * size, (number + 1) * size)]
                skip = max(0, self.position.batches_per_lane - number * BATCHES_PER_WINDOW)
                built.append(build_window(KeepRows(), rows, batch, [SEED, lane, number], skip))
            yield from zip(*built, strict=True)
            number += 1


@pytest.mark.parametrize("trial", range(240))
def test_kills_and_other_numbers_of_workers_change_nothing(trial):
    """Runs killed at random steps, resumed from the last checkpoint by any number of workers, against one that ran through."""
    rng = random.Random(trial)
    weighted = rng.random() < 0.5
    sets = [make_set(f"set{i}", [rng.randint(1, 30) for _ in range(rng.randint(1, 6))], rng.choice([1, 2, 5]) if weighted else None)
            for i in range(rng.randint(1, 4))]
    num_lanes, batch = rng.choice([1, 2, 4, 6, 12]), rng.randint(1, 5)
    workers = range(1, num_lanes + 1)
    if sum(each.num_rows for each in sets) < num_lanes:
        sets.append(make_set("more", [num_lanes], 1 if weighted else None))
    mixture = Mixture(sets, SEED, num_lanes)
    steps = BATCHES_PER_WINDOW * math.ceil(2 * mixture.rows_per_epoch / (num_lanes * batch * BATCHES_PER_WINDOW) + 1)  # whole windows

    whole = list(zip(range(steps), Worker(mixture, range(num_lanes), mixture.start(batch)), strict=False))
    undisturbed = [sorted(key for lane in lanes for key in lane) for _, lanes in whole]

    position, survived = mixture.start(batch), []
    while len(survived) < steps:
        num_workers, killed_after, every = rng.choice(workers), rng.randint(1, 2 * steps), rng.randint(1, 4)
        streams = [iter(Worker(Mixture(sets, SEED, num_lanes), lanes_of_worker(rank, num_workers, num_lanes), position))
                   for rank in range(num_workers)]
        since = []
        for step in range(1, killed_after + 1):
            since.append(sorted(key for stream in streams for lane in next(stream) for key in lane))
            if step % every == 0 or len(survived) + len(since) == steps:
                survived += since
                position = DataPosition.from_json(dataclasses.replace(
                    position, batches_per_lane=position.batches_per_lane + len(since)).to_json())
                since = []
            if len(survived) >= steps:
                break
    assert survived[:steps] == undisturbed, "each step trains on the same rows, whoever takes it"

    consumed = Counter(key for step in undisturbed for key in step)
    assert set(consumed.values()) == {1}, "no row comes twice in an epoch"
    first_epoch = {repr(row) for row in epochs_of(mixture, 1)[0]}
    assert {key for epoch, key in consumed if epoch == 0} == first_epoch, "and none is left out"


def test_what_would_repeat_or_lose_rows_is_refused():
    mixture = Mixture([make_set("a", [20])], SEED, 4)
    position = mixture.start(2)
    mixture.check(position, 2)
    with pytest.raises(ConfigError, match="begun with 2 as its photos_per_micro_step, the configuration says 3"):
        mixture.check(position, 3)
    with pytest.raises(ConfigError, match=r"begun with 4 as its micro-batches a step .* says 2"):
        Mixture([make_set("a", [20])], SEED, 2).check(position, 2)
    with pytest.raises(ConfigError, match="data and seed"):
        Mixture([make_set("b", [20])], SEED, 4).check(position, 2)
    with pytest.raises(ConfigError, match="not one that this version reads"):
        DataPosition.from_json('{"first_epoch": 0, "consumed": {}}')


def test_mistakes_of_the_user():
    with pytest.raises(ConfigError, match="1 of 2 sets of `data` have a weight and b has none"):
        Mixture([make_set("a", [3], 1), make_set("b", [3])], SEED, 1)
    with pytest.raises(ShardError, match="found 3 rows an epoch for 4 micro-batches"):
        Mixture([make_set("a", [3])], SEED, 4)
    with pytest.raises(ConfigError, match=r"6 micro-batches a step cannot be shared out among 7 workers; take at most 6"):
        lanes_of_worker(0, 7, 6)
