"""What `suite=data` compares is alike, and what it counts is counted. No test here looks at how long anything took."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.benchmarks.data import Config, _result
from jobs.benchmarks.data_contenders import PhotoBuilder, tree_cpu_s
from jobs.benchmarks.data_decoders import decoders, measure_decoders
from jobs.benchmarks.data_padding import measure_padding
from jobs.benchmarks.data_photos import draw_photo
from jobs.benchmarks.result import Case, Table
from pixellm.data.spans import StreamedRow


def test_what_the_stream_makes_is_what_the_others_make():
    photos = [draw_photo((90, 120), seed) for seed in range(3)]
    builder = PhotoBuilder(112)
    packed = builder.build([StreamedRow({"image": photo}, 0, "key") for photo in photos])
    assert packed["pixels"].dtype == torch.uint8 and packed["pixels"].shape == (3, 112, 112, 3)
    assert torch.equal(builder.unpack(packed), builder.batch(photos)) and builder.batch(photos).dtype == torch.float32


def test_all_decoders_see_the_same_photo():
    data = draw_photo((240, 320), 0)
    whole = np.asarray(decoders()["Pillow"](data, 320)).astype(int)
    for name, decode in decoders().items():
        assert np.abs(np.asarray(decode(data, 320)).astype(int) - whole).mean() < 2, name
    cases = measure_decoders(32, repeats=1, sizes_hw=((240, 320),))
    assert len(cases) == len(decoders()) >= 2 and all(case.unit == "ms/image" and len(case.values) == 1 for case in cases)


def test_rows_by_length_are_padded_less():
    table = measure_padding(num_rows=64)
    assert [row[:2] for row in table.rows] == [("scenes", 2), ("scenes", 8), ("written answers", 2), ("written answers", 8)]
    for *_, as_they_come, by_length in table.rows:
        assert 0 <= by_length < as_they_come < 1


def test_the_figures_are_put_together_and_drawn(tmp_path):
    rates = {"limit": 400.0, "stream": 300.0, "mixture": 280.0, "dataloader": 200.0}
    runs = {(name, 2): [{"images_per_s": rate, "cpu_ms_per_image": 2000 / rate, "first_batch_s": 5.0, "peak_rss_mb": 900.0}]
            for name, rate in rates.items()}
    prepared = {"rows_per_s": 50.0, "rasterise_share": 0.25}
    config = Config.model_validate({"suite": "data", "cores": [2], "output": str(tmp_path)})
    padding = Table("Padding", ("rows",), [("scenes",)])
    result = _result(config, runs, prepared, 150_000, [Case("decode", "ms/image", (3.0,))], padding)
    assert (result.headline["stream_vs_limit"], result.headline["stream_vs_dataloader"]) == (0.75, 1.5)
    assert result.headline["stream_cpu_vs_limit"] == pytest.approx(0.75)
    assert list(result.tables[-1].rows[-1]) == [1, 1280, 192, 9, 2], "1,280 photos/s at 150 a core"
    assert Image.open(tmp_path / "data.png").height > 4 * 20


def test_the_time_of_children_counts():
    before = tree_cpu_s()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert tree_cpu_s() - before > 0.25, "the system counts in hundredths of a second, for each process apart"
