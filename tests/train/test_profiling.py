"""A trace of the chosen step and of no other."""

import gzip
import json

import torch

from pixellm.train.profiling import traced


def test_only_the_chosen_step_is_traced(tmp_path):
    for step in (1, 2, 3):
        with traced(step, (2,), str(tmp_path)):
            torch.ones(4, 4) @ torch.ones(4, 4)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "step_00000002.json.gz"
    names = {event["name"] for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]}
    assert "aten::matmul" in names
