"""Every configuration file of the repository is valid, and a slip in one is named."""

from pathlib import Path

import pytest
import yaml

from jobs.prepare_data import build_config_class
from pixellm.errors import ConfigError
from pixellm.evaluation.evaluate import EvaluateConfig
from pixellm.settings import StrictModel, load_yaml
from pixellm.train.config import TrainConfig
from pixellm.train.tower import TowerConfig
from serve.config import AppConfig
from tests.conftest import ROOT

FILES = sorted([*(ROOT / "jobs/configs").rglob("*.yaml"), *(ROOT / "serve/configs").rglob("*.yaml")])


def config_class(file: Path) -> type[StrictModel]:
    """The model of a file: all of serve/configs are applications, those of jobs/configs say it with the first word of their name."""
    if file.is_relative_to(ROOT / "serve"):
        return AppConfig
    kind = file.name.split("_")[0].removesuffix(".yaml")
    if kind == "prepare":
        return build_config_class(yaml.safe_load(file.read_text())["source"])
    classes = {"train": TrainConfig, "pretrain": TowerConfig, "evaluate": EvaluateConfig}
    assert kind in classes, f"{file.name}: the first word of a file's name says which job reads it; known: prepare, {', '.join(classes)}"
    return classes[kind]


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


def test_training_and_held_out_scenes_differ():
    train, val = (yaml.safe_load((ROOT / f"jobs/configs/prepare_shapes_{split}.yaml").read_text()) for split in ("train", "val"))
    naming = yaml.safe_load((ROOT / "jobs/configs/prepare_shapes_naming.yaml").read_text())
    assert len({train["seed"], val["seed"], naming["seed"], 4, 6}) == 5, "4 and 6 are those of platform/local/pretrain.sh"
