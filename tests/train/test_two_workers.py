"""Two processes share a global batch: the gradient is that of one process, and its saved state is read by one."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pixellm.train.deepspeed import MOMENTS, TrainedState
from pixellm.train.step import optimiser_step
from tests.train.examples import NUM_PHOTOS, build_engine, largest_difference, make_batch, make_config


def work(rank: int, folder: str) -> None:
    """One of two processes: a step on its own half of the photos at ZeRO-2, the state saved, two steps more."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = make_config(zero_stage=2)
    engine = build_engine(config)
    batches = [make_batch(list(range(rank, NUM_PHOTOS, 2)))]
    optimiser_step(engine, batches, config, factor=1.0)
    state = engine.gather_state()
    later = torch.tensor([optimiser_step(engine, batches, config, factor=1.0).text for _ in range(2)])
    if rank == 0:
        moments = {f"{moment}.{name}": value for moment in MOMENTS for name, value in state.moments[moment].items()}
        save_file(state.parameters | moments | {"later": later, "num_updates": torch.tensor(state.num_updates)}, Path(folder) / "state")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_workers_do_what_one_does(process_group, tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    saved = load_file(tmp_path / "state")

    config, batches = make_config(zero_stage=1), [make_batch(list(range(NUM_PHOTOS)))]
    alone = build_engine(config)
    optimiser_step(alone, batches, config, factor=1.0)
    expected = alone.gather_state()
    scale = 1 / (1 - config.betas[0])
    found = {name: saved[f"exp_avg.{name}"] * scale for name in expected.parameters}
    gradients = {name: value * scale for name, value in expected.moments["exp_avg"].items()}
    assert largest_difference(found, gradients) < 2e-5  # measured 5e-7: sums in another order

    state = TrainedState({name: saved[name] for name in expected.parameters},
                         {moment: {name: saved[f"{moment}.{name}"] for name in expected.parameters} for moment in MOMENTS},
                         int(saved["num_updates"]))
    alone.load_state(state)
    later = [optimiser_step(alone, batches, config, factor=1.0).text for _ in range(2)]
    torch.testing.assert_close(torch.tensor(later), saved["later"], rtol=1e-4, atol=0)
