"""Micro-batches survive the way through a table, whatever is in them."""

import numpy as np
import torch

from pixellm.data.collate import MicroBatch, SetAside
from pixellm.data.transport import from_table, to_table


def test_tensors_of_every_kind_come_back_equal_and_writable() -> None:
    tensors = {"large": torch.randn(2, 3, 64, 64), "small": torch.randn(2, 3, 4, 4), "half": torch.randn(5).bfloat16(),
               "ids": torch.arange(6).reshape(2, 3),
               "none": torch.zeros(0, 7, 7), "turned": torch.randn(3, 4).T, "scalar": torch.tensor(3.5),
               "flags": torch.tensor([True, False])}
    batch = MicroBatch(tensors, [(0, "a/b/1"), (1, "a/b/2#1")], [SetAside("a/b/1", "photo_unreadable", "why")])
    table = to_table([batch, {"array": np.arange(4), "text": "words"}])
    found, other = from_table(table)
    assert found.consumed == batch.consumed and found.set_aside == batch.set_aside and table.num_rows == 1
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)
        found.tensors[name].zero_()
    assert other["array"].tolist() == [0, 1, 2, 3] and other["text"] == "words"
    assert float(tensors["large"].abs().sum()) > 0, "the original is another memory"
    assert list(from_table(to_table([]))) == []


def test_the_memory_of_tensors_is_not_in_the_pickle() -> None:
    table = to_table([torch.zeros(1000, 1000), torch.zeros(10)])
    assert len(table["head"][0].as_py()) < 1000 and table.nbytes > 4_000_000 and table.num_columns == 2
