"""platform/README.md: its commands name jobs, keys and files that exist, and its costs are what the formula gives."""

import re

import pytest

from jobs.validation.runs import problems_of_commands
from pixellm.model.flops import count_training
from pixellm.model.presets import preset_config
from pixellm.settings import load_yaml
from pixellm.train.config import TrainConfig
from pixellm.train.device import BF16_PEAK_TFLOPS
from tests.conftest import ROOT

TEXT = (ROOT / "platform/README.md").read_text()
ROW = re.compile(r"\| `(train_\w+)` \| (\d) x \S+, (\d) (\w+) \| ([\d.]+)e18 \| ([\d.]+) \| ([\d.]+) \| (\d+) \|")
MFU, TEXT_TOKENS, TARGETS = 0.30, 128, 3.7


def test_commands_of_the_runbook():
    commands = re.sub(r" \\\n +", " ", "\n".join(line[4:] for line in TEXT.splitlines() if line.startswith("    ")))
    found = [line.partition("  #")[0] for line in commands.splitlines() if "-m jobs." in line and "jobs.validate" not in line]
    assert len(found) >= 8
    assert [problem for line in found for problem in problems_of_commands(line)] == []


def test_files_of_the_runbook_exist():
    named = re.findall(r"platform/[\w/.-]+\w", TEXT)
    named += [f"platform/{each}" for each in re.findall(r"`((?:cluster|docker|observability)/[\w./-]+)`", TEXT)]
    named += [f"platform/kuberay/{each}" for each in re.findall(r"`((?:overlays|jobs)/[\w./-]+)`", TEXT)]
    named += re.findall(r"`((?:tests|docs|pixellm)/[\w./-]+\.\w+)`", TEXT)
    assert len(set(named)) >= 12
    assert [name for name in named if not (ROOT / name).exists()] == []


def operations_of_a_step(config: TrainConfig, preset: str) -> float:
    architecture = preset_config(preset)
    flops = count_training(architecture, config.trained_parts, config.lora is not None)
    photos = config.num_workers * config.accumulation * config.photos_per_micro_step
    conversations = photos * config.max_conversations_per_photo
    tokens = architecture.num_image_tokens + TEXT_TOKENS + TARGETS * len(architecture.codebook_token_ids)
    return flops.of(photos, conversations * tokens, conversations, conversations * TARGETS)


def test_costs_are_what_the_formula_gives():
    rows = ROW.findall(TEXT)
    assert len(rows) == 6
    step = {}
    for run, num_nodes, num_gpus, gpu, total, hours, price, dollars in rows:
        config = load_yaml(ROOT / f"jobs/configs/{run}.yaml", TrainConfig)
        assert int(num_nodes) * int(num_gpus) == config.num_workers
        preset = "13b" if "13b" in run else "7b"
        step[preset] = step.get(preset) or operations_of_a_step(config, preset)
        took = config.steps * step[preset] / (config.num_workers * BF16_PEAK_TFLOPS[gpu] * 1e12 * MFU) / 3600
        assert float(total) == pytest.approx(config.steps * step[preset] / 1e18, abs=0.005)
        assert float(hours) == pytest.approx(took, abs=0.005)
        assert int(dollars) == pytest.approx(took * int(num_nodes) * float(price), abs=0.5)
    assert f"{step['7b'] / 1e15:.3f}e15 for `7b`, {step['13b'] / 1e15:.3f}e15 for `13b`" in TEXT
