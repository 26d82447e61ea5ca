"""The process of a job stays small whatever the model: export, evaluate and convert, with a small model and one of a billion values."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from pixellm.data.shards import ShardOptions, write_shards
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.presets import pretrained_dir, tiny_config
from pixellm.model.tensor_plan import Plan, write_model
from pixellm.train.checkpoint import checkpoint_name
from pixellm.train.deepspeed import MOMENTS, TrainedState
from tests.conftest import ROOT
from tests.data.rows import make_row
from tests.model.llama_files import write_tokenizer
from tests.train.examples import make_config
from tests.train.test_checkpoint import make_checkpoint, write

pytestmark = pytest.mark.ray
LIMIT_BYTES = 1.5e9
HIDDEN, MLP = 2048, 5504


def random_values(shape) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16) * 0.02


def write_base(folder: Path, num_layers: int) -> int:
    """`tiny` with a wide language model of random values in bfloat16; the number of its values."""
    config = tiny_config()
    config.text_config = LlamaConfig(**config.text_config.to_dict() | {
        "hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": num_layers, "num_attention_heads": 16, "head_dim": 128,
        "num_key_value_heads": 16})
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in PixelLMForConditionalGeneration(config).state_dict().items()}
    plan = Plan()
    for name, shape in shapes.items():
        plan.put(name, lambda shape=shape: random_values(shape), shape)
    config.dtype = torch.bfloat16
    write_model(config, plan, folder)
    PixelLMProcessor.from_pretrained(pretrained_dir("tiny")).save_pretrained(folder)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def write_run(folder: Path, base: Path) -> str:
    """A checkpoint of a run that trained adapters on `base`."""
    config = make_config(storage=str(folder / "runs"), model=str(base), lora={"r": 2})
    layer = "language_model.model.layers.0.self_attn.q_proj"
    trained = {f"{layer}.lora_A.default.weight": torch.randn(2, HIDDEN), f"{layer}.lora_B.default.weight": torch.randn(HIDDEN, 2)}
    moments = {moment: {name: torch.zeros_like(value) for name, value in trained.items()} for moment in MOMENTS}
    checkpoint = replace(make_checkpoint(), config=config, state=TrainedState(trained, moments, 7))
    return write(f"{config.run_uri}/{checkpoint_name(7)}", checkpoint, folder / "local")


def write_llava(folder: Path, num_layers: int) -> None:
    """LLaVA in Hugging Face form with random values in bfloat16, a file for each 8 layers."""
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=2, image_size=336,
                              patch_size=14, projection_dim=32)
    text = LlamaConfig(vocab_size=420, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=num_layers, num_attention_heads=16)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlavaForConditionalGeneration(config).state_dict().items()}
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    names = list(shapes)
    for number, start in enumerate(range(0, len(names), 72)):
        save_file({name: random_values(shapes[name]) for name in names[start:start + 72]}, folder / f"model-{number}.safetensors")


def peak_bytes(folder: str, *arguments: str) -> int:
    """Peak memory of the driver of a job, with a Ray of its own."""
    done = subprocess.run([sys.executable, "-m", "tests.ray.driver_peak", *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, "RAY_TMPDIR": folder})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "the page is without" not in done.stdout, done.stdout
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("num_layers", [1, pytest.param(19, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_drivers_stay_small(num_layers, tmp_path, record_result):
    base = tmp_path / "base"
    num_values = write_base(base, num_layers)
    write_shards([make_row(0)], str(tmp_path / "shards"), ShardOptions())
    checkpoint = write_run(tmp_path, base)
    write_llava(tmp_path / "llava", num_layers)
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        peaks = {
            "convert": peak_bytes(folder, "jobs.convert_checkpoint", f"from_llava={tmp_path}/llava", f"out={tmp_path}/converted"),
            "export": peak_bytes(folder, "jobs.export", f"checkpoint={checkpoint}", f"output={tmp_path}/model", "dtype=bfloat16"),
            "evaluate": peak_bytes(folder, "jobs.evaluate", f"model={tmp_path}/model", f"shards={tmp_path}/shards", "dtype=bfloat16",
                                   f"output={tmp_path}/report", "max_new_tokens=4", "max_failed_share=1")}
    figures = {"num_values": num_values, "peak_driver_bytes": peaks}
    if num_layers > 1:
        assert num_values > 0.95e9
        record_result("driver_memory", figures)
    assert max(peaks.values()) < LIMIT_BYTES, figures
