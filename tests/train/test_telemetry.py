"""Numbers of an interval, the console line and the event files."""

import pytest

from pixellm.train.telemetry import Interval, Telemetry, format_duration

WEIGHTS = {"text": 1.0, "bce": 2.0, "dice": 0.5}


def make_interval(**changes) -> Interval:
    values = {"num_steps": 1, "text": 30.0, "bce": 4.0, "dice": 6.0, "num_answer_tokens": 10, "num_masks": 8, "num_photos": 6,
              "num_tokens": 100, "gradient_norm": 2.0, "wall_s": 2.0, "parts_s": {"data_wait": 0.5, "forward": 1.0}}
    return Interval(**(values | changes))


def test_losses_are_means_over_all_steps_of_the_interval():
    interval = make_interval()
    interval.add(make_interval(text=0.0, num_answer_tokens=20))
    assert interval.losses() == {"text": 1.0, "bce": 0.5, "dice": 0.75}
    assert interval.parts_s == {"data_wait": 1.0, "forward": 2.0} and interval.num_steps == 2


@pytest.fixture
def telemetry(tmp_path):
    made = Telemetry(str(tmp_path), "run", num_steps=100, loss_weights=WEIGHTS)
    yield made
    made.close()


def test_line_says_it_all(telemetry, capsys):
    telemetry.write(10, make_interval(num_set_aside=3), learning_rate_factor=0.5, epoch=1)
    line = capsys.readouterr().out
    for piece in ("step 10/100", "loss 4.375 (text 3.000 bce 0.500 dice 0.750)", "lr x0.500", "grad 2.00", "3.0 images/s", "50 tokens/s",
                  "data wait 25%", "3m00s left", "3 set aside"):
        assert piece in line


def test_events_lie_in_the_folder_of_the_run(telemetry, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    telemetry.write(10, make_interval(), learning_rate_factor=0.5, epoch=1)
    telemetry.upload()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss/total", "loss/text", "speed/images_per_s", "time_s/forward", "progress/epoch"} <= set(events.Tags()["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("speed/data_wait_share")] == [(10, 0.25)]


def test_durations_read_well():
    assert [format_duration(seconds) for seconds in (4.6, 200, 7500)] == ["5s", "3m20s", "2h05m"]
