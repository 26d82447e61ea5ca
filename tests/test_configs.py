"""Every configuration file of the repository is valid, and a slip in one is named."""

from pathlib import Path

import pytest
import yaml

from jobs.validation import runs
from pixellm.errors import ConfigError
from pixellm.model.presets import preset_config
from pixellm.settings import StrictModel, load_yaml
from pixellm.train.config import TrainConfig
from pixellm.train.memory import BatchShape, estimate_memory
from serve.config import AppConfig
from tests.conftest import ROOT

FILES = sorted([*(ROOT / "jobs/configs").rglob("*.yaml"), *(ROOT / "serve/configs").rglob("*.yaml")])


def config_class(file: Path) -> type[StrictModel]:
    """The model of a file: all of serve/configs are applications, those of jobs/configs say it with the first word of their name."""
    if file.is_relative_to(ROOT / "serve"):
        return AppConfig
    return runs.config_class(runs.WORDS[runs.first_word(file)], yaml.safe_load(file.read_text()))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_file_is_valid(file):
    assert isinstance(load_yaml(file, config_class(file)), StrictModel)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_misspelt_key_names_the_right_one(file, tmp_path):
    values = yaml.safe_load(file.read_text())
    key = max((key for key in values if key != "source"), key=len)
    values[key + "s"] = values.pop(key)
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=f"{key}s: unknown key; did you mean '{key}'"):
        load_yaml(misspelt, config_class(file))


def test_the_demo_has_its_files():
    names = {file.name for file in FILES}
    assert {"prepare_shapes_train.yaml", "prepare_shapes_val.yaml", "train_tiny_cpu.yaml", "tiny.yaml"} <= names


GOLDEN_RUNS = ("train_7b_muse_8xgpu", "train_7b_paper_mixture_4x8gpu", "train_13b_zero3_4x8gpu")


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_golden_runs_are_the_papers(name):
    """What the paper and the released run say, and that a worker's memory fits into 80 GB."""
    config = load_yaml(ROOT / f"jobs/configs/{name}.yaml", TrainConfig)
    assert config.num_workers * config.accumulation * config.photos_per_micro_step == 160 and config.steps == 5000
    assert set(config.learning_rates.model_dump().values()) == {3e-4} and config.frozen == ("vision_tower",)
    assert (config.betas, config.weight_decay, config.clip_norm, config.warmup_steps) == ((0.9, 0.95), 0, 1, 100)
    assert config.loss_weights.model_dump() == {"text": 1, "bce": 2, "dice": 0.5}
    assert (config.lora.r, config.lora.alpha, config.lora.dropout, config.lora.targets) == (8, 16, 0.05, ("q_proj", "v_proj"))
    assert config.use_gpu and config.precision == "bf16" and config.to_deepspeed()["optimizer"]["params"]["fused"]
    preset = "13b" if "13b" in name else "7b"
    estimate = estimate_memory(preset_config(preset), config, BatchShape(config.photos_per_micro_step, 3, text_tokens=512, targets=8))
    weights = estimate.num_parameters * 2 / (config.num_workers if config.zero_stage == 3 else 1)
    assert weights <= estimate.parts["weights"] < weights + 0.1e9 and 8e9 < estimate.total < 60e9


def test_the_papers_mixture():
    config = load_yaml(ROOT / "jobs/configs/train_7b_paper_mixture_4x8gpu.yaml", TrainConfig)
    weights = {entry.uri.split("/")[-2]: entry.weight for entry in config.data}
    families = [["ade20k", "coco_stuff", "pascal_part", "paco", "mapillary"], ["refclef", "refcoco", "refcoco+", "refcocog"],
                ["llava_instruct"], ["muse"]]
    assert [sum(weights[name] for name in family) for family in families] == pytest.approx([2, 9, 2, 4])
    assert sorted(weights) == sorted(name for family in families for name in family)


def test_training_and_held_out_scenes_differ():
    train, val = (yaml.safe_load((ROOT / f"jobs/configs/prepare_shapes_{split}.yaml").read_text()) for split in ("train", "val"))
    naming = yaml.safe_load((ROOT / "jobs/configs/prepare_shapes_naming.yaml").read_text())
    assert len({train["seed"], val["seed"], naming["seed"], 4, 6}) == 5, "4 and 6 are those of platform/local/pretrain.sh"
