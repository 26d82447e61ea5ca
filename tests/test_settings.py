"""pixellm/settings.py: strict models from YAML and from the command line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import Field

from pixellm.errors import ConfigError
from pixellm.settings import Seed, StrictModel, build_config, load_yaml, parse_command_line, read_values


class Optimizer(StrictModel):
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


class Run(StrictModel):
    steps: int = Field(gt=0, description="optimizer steps")
    name: str = "run"
    optimizer: Optimizer = Optimizer()
    stages: tuple[Optimizer, ...] = ()


def write(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return file


def test_overrides_win_over_the_file_and_keep_its_other_keys(tmp_path):
    file = write(tmp_path, "steps: 3\noptimizer: {learning_rate: 0.1, betas: [0.8, 0.9]}\n")
    run = load_yaml(file, Run, ["steps=5", "optimizer.learning_rate=0.2", "name=a=b"])
    assert run == Run(steps=5, name="a=b", optimizer=Optimizer(learning_rate=0.2, betas=(0.8, 0.9)))


def test_an_override_may_make_its_parents(tmp_path):
    assert load_yaml(write(tmp_path, "steps: 3"), Run, ["optimizer.betas=[0.5, 0.6]"]).optimizer.betas == (0.5, 0.6)


@pytest.mark.parametrize(("values", "message"), [
    ({"steps": 1, "nmae": "x"}, "nmae: unknown key; did you mean 'name'?"),
    ({"steps": 1, "optimizer": {"learning_rte": 1}}, "optimizer.learning_rte: unknown key; did you mean 'learning_rate'?"),
    ({"steps": 1, "stages": [{"beta": 1}]}, "stages.0.beta: unknown key; did you mean 'betas'?"),
    ({"steps": 1, "zzzzzz": 1}, "zzzzzz: unknown key; known keys: steps, name, optimizer, stages"),
    ({"steps": 0}, "steps: Input should be greater than 0, found 0"),
])
def test_each_mistake_is_named(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_config(Run, values)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError, match=r"(?s)steps: .*; nmae: unknown key"):
        build_config(Run, {"steps": "many", "nmae": 1})


@pytest.mark.parametrize(("text", "overrides", "message"), [
    ("steps: [", [], "run.yaml:1: not YAML"),
    ("- 1", [], "holds a list, expected keys and values"),
    ("steps: 1", ["steps"], "override 'steps' is not of the form key=value"),
    ("steps: 1", ["steps.more=1"], "override 'steps.more=1': steps is '1', it has no keys"),
    ("steps: 1", ["optimizer.betas=["], "optimizer.betas=[:1: not YAML"),
])
def test_unreadable_input(tmp_path, text, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_yaml(write(tmp_path, text), Run, overrides)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml does not exist"):
        load_yaml(tmp_path / "no.yaml", Run)


def test_configurations_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Run(steps=1).steps = 2


def test_command_line(tmp_path, capsys):
    file = write(tmp_path, "steps: 3")
    assert parse_command_line(Run, "a job", ["--config", str(file), "name=x"]) == Run(steps=3, name="x")
    assert parse_command_line(Run, "a job", ["steps=4"]) == Run(steps=4)
    with pytest.raises(SystemExit) as ended:
        parse_command_line(Run, "a job", ["step=4"])
    assert ended.value.code == 2
    assert "step: unknown key; did you mean 'steps'?" in capsys.readouterr().err


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(Run, "a job", ["--help"])
    shown = capsys.readouterr().out
    assert "steps: int (required)  optimizer steps" in shown
    assert all(name in shown for name in Run.model_fields)


def test_help_lists_the_keys_of_sub_models_as_they_are_written(capsys):
    class Whole(StrictModel):
        run: Run = Run(steps=1)

    with pytest.raises(SystemExit):
        parse_command_line(Whole, "a job", ["--help"])
    assert "  run.steps: int (required)  optimizer steps" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 7, -1, -2, -(2**63), 2**63 - 1])
def test_any_int64_is_a_seed_that_numpy_and_torch_take(seed):
    class Seeded(StrictModel):
        seed: Seed = 0

    taken = build_config(Seeded, {"seed": seed}).seed
    np.random.default_rng([taken, 1])
    torch.manual_seed(taken + 4096)  # and the rank of a worker
    assert taken == seed or seed < 0 <= taken
    assert build_config(Seeded, {"seed": taken}).seed == taken
    assert build_config(Seeded, {"seed": seed - 1 if seed > -(2**63) else 1}).seed != taken
    with pytest.raises(ConfigError, match="seed: Input should be"):
        build_config(Seeded, {"seed": 2**63})


def test_a_file_that_ships_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_values("jobs/configs/prepare_shapes_val.yaml")["source"] == "shapes"
    (tmp_path / "jobs/configs").mkdir(parents=True)
    (tmp_path / "jobs/configs/prepare_shapes_val.yaml").write_text("source: coco")
    assert read_values("jobs/configs/prepare_shapes_val.yaml") == {"source": "coco"}, "a file of the reader's own comes first"
