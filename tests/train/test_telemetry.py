"""Numbers of an interval, the console line, the event files, and that a sink's failure stops nothing."""

import pytest
import torch

from pixellm.data.schema import TASKS
from pixellm.model.packing import unpack_batch
from pixellm.train.console import format_duration
from pixellm.train.forward import forward_losses
from pixellm.train.metric_names import METRICS, metric_of
from pixellm.train.sinks import Sinks
from pixellm.train.tasks import TASK_KEYS, mean_losses, sums_by_task
from pixellm.train.telemetry import Interval, Telemetry
from tests.conftest import ROOT
from tests.train.examples import NUM_PHOTOS, base_model, make_batch, make_config


def make_interval(**changes) -> Interval:
    values = {"num_steps": 1, "text": 30.0, "bce": 4.0, "dice": 6.0, "num_answer_tokens": 10, "num_masks": 8, "num_photos": 6,
              "num_conversations": 6, "num_tokens": 300, "gradient_norm": 2.0, "wall_s": 2.0, "parts_s": {"data_wait": 0.5, "forward": 1.0},
              "by_task": dict.fromkeys(TASK_KEYS, 0.0) | {"text/vqa": 6.0, "num_answer_tokens/vqa": 3.0}}
    return Interval(**(values | changes))


def test_losses_are_means_over_all_steps_of_the_interval():
    interval = make_interval()
    interval.add(make_interval(text=0.0, num_answer_tokens=20))
    assert interval.losses() == {"text": 1.0, "bce": 0.5, "dice": 0.75}
    assert interval.parts_s == {"data_wait": 1.0, "forward": 2.0} and interval.num_steps == 2
    assert mean_losses(interval.by_task) == {"loss_text/vqa": 2.0}


def test_losses_by_task_are_those_of_the_tasks_conversations():
    photos = list(range(NUM_PHOTOS))
    config, tensors = make_config(), unpack_batch(make_batch(photos).tensors)
    losses = forward_losses(base_model()[0].eval(), tensors, config)
    sums = sums_by_task(losses, tensors["task_index"])
    torch.testing.assert_close(sums[0].sum(), losses.text.sum())
    assert sums[4].tolist() == photos, "photo n has n masks and is of task n"
    for photo in photos:
        alone = forward_losses(base_model()[0].eval(), unpack_batch(make_batch([photo]).tensors), config)
        expected = [float(alone.text.sum()), float(alone.bce.sum()), float(alone.dice.sum()), int(alone.num_answer_tokens), photo]
        assert sums[:, photo % len(TASKS)].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def telemetry(tmp_path):
    config = make_config(storage=str(tmp_path), telemetry={"peak_tflops": 0.01}, loss_weights={"text": 1.0, "bce": 2.0, "dice": 0.5})
    made = Telemetry(config, base_model()[0].config, num_workers=2)
    yield made
    made.close()


def write(telemetry, **changes):
    telemetry.write(10, make_interval(**changes), learning_rate_factor=0.5, epoch=1, memory_gb=3.0)


def test_line_says_it_all(telemetry, capsys):
    write(telemetry, num_set_aside=3)
    line = capsys.readouterr().out
    for piece in ("step 10/100", "loss 4.375 (text 3.000 bce 0.500 dice 0.750)", "lr x0.500", "grad 2.00", "3.0 images/s", "150 tokens/s",
                  "MFU ", "data wait 25%", "3m00s left", "3 set aside"):
        assert piece in line


def test_mfu_is_the_share_of_the_peak_of_each_worker(telemetry):
    values = telemetry.values(make_interval(), 1.0)
    assert values["speed/tflop_per_s"] == pytest.approx(telemetry.flops.of(6, 300, 6, 8) / 1e12 / 2.0 / 2)
    assert values["speed/mfu"] == pytest.approx(values["speed/tflop_per_s"] / 0.01) and 0 < values["speed/mfu"] < 1


def test_events_lie_in_the_folder_of_the_run(telemetry, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(telemetry)
    telemetry.flush()
    events = EventAccumulator(str(tmp_path / "test" / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss/total", "loss_text/vqa", "learning_rate/codebook", "speed/images_per_s", "time_s/forward", "memory/peak_gb"} <= tags
    assert [(event.step, event.value) for event in events.Scalars("speed/data_wait_share")] == [(10, 0.25)]
    assert {metric_of(tag)[0].name for tag in tags} <= {metric.name for metric in METRICS}
    assert telemetry.sinks.num_failures == 0, "the gauges took them too"


def test_metric_of_a_tag_has_its_labels():
    metric, labels = metric_of("loss_bce/referring")
    assert (metric.name, labels) == ("pixellm_train_task_loss", {"part": "bce", "task": "referring"})
    assert metric_of("loss/bce")[0].name == "pixellm_train_loss"
    with pytest.raises(KeyError, match="not in METRICS"):
        metric_of("speed/unknown")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


class Broken:
    """A sink of a tracker that is away."""

    def write(self, step, values):
        raise ConnectionError("away")


class Kept:
    def __init__(self):
        self.steps = []

    def write(self, step, values):
        self.steps.append(step)


def test_a_failing_sink_is_told_once_and_the_others_go_on(capsys):
    kept = Kept()
    sinks = Sinks([Broken(), kept])
    for step in range(3):
        sinks.write(step, {})
    assert kept.steps == [0, 1, 2] and sinks.num_failures == 3
    assert capsys.readouterr().out.count("Broken: ConnectionError: away") == 1


def test_durations_read_well():
    assert [format_duration(seconds) for seconds in (4.6, 200, 7500)] == ["5s", "3m20s", "2h05m"]


def test_the_documentation_lists_every_metric():
    page = (ROOT / "docs/train.md").read_text()
    assert not [metric.name for metric in METRICS if f"| `{metric.tag}` | `{metric.name}` | {metric.description} |" not in page]
