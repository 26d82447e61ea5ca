"""The benchmark job: what it prints and writes, and that all suites have the same shape."""

import importlib
import json

import pytest

from jobs.benchmark import main
from jobs.benchmarks import SUITES
from jobs.benchmarks.result import BenchmarkConfig

ARGUMENTS = ["suite=size", "presets=[tiny]"]


def test_the_last_line_is_the_written_object(tmp_path, capsys):
    main([*ARGUMENTS, f"output={tmp_path}"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found == json.loads((tmp_path / "size.json").read_text())
    assert found.keys() >= {"suite", "machine", "date", "command", "git_revision", "settings", "cases", "notes"}
    assert found.keys() >= {"params_by_part", "trainable_params"}
    assert found["command"].startswith("python -m jobs.benchmark suite=size 'presets=[tiny]'") and found["settings"]["presets"] == ["tiny"]
    assert found["machine"].keys() >= {"cpu", "cores", "memory_gib", "python", "torch"}
    assert printed.startswith((tmp_path / "size.md").read_text())


@pytest.mark.parametrize(("arguments", "said"), [
    (["suite=sizes"], "did you mean 'size'"), ([], "suite: Field required"), ([*ARGUMENTS, "preset=[tiny]"], "did you mean 'presets'"),
    (["suite=size", "presets=[8b]"], "preset '8b' is not known; known: tiny, 7b, 13b")])
def test_a_slip_is_named(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code != 0 and said in capsys.readouterr().err + str(end.value)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_a_config_and_a_run(name):
    suite = importlib.import_module(f"jobs.benchmarks.{name}")
    assert issubclass(suite.Config, BenchmarkConfig) and callable(suite.run)
    assert suite.Config(suite=name).quick is False, "a suite runs without any other key"
