"""jobs.validate: what the repository holds passes, and each of many broken files fails with the message that says what to write."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from jobs import validate as job
from jobs.validation.check import validate
from jobs.validation.documents import Report, read_documents, read_text_at
from jobs.validation.runs import JOBS, problems_of_commands
from tests.conftest import ROOT
from tests.jobs.validation.broken import AWS, BROKEN

FOLDERS = ("platform", "jobs/configs", "serve/configs")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of all files that are checked, at the same places."""
    root = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder)
    return root


@pytest.mark.parametrize(("file", "found", "instead", "message"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_broken_file_is_found(tree, file, found, instead, message):
    good = (ROOT / file).read_text()
    assert found in good, f"{file} no longer has {found!r}: write another edit"
    (tree / file).write_text(good.replace(found, instead, 1))
    try:
        report = validate([str(tree / file)])
    finally:
        (tree / file).write_text(good)
    found_here = [str(each) for each in report.findings]
    assert any(message in each for each in found_here), found_here
    assert all(each.startswith(str(tree)) for each in found_here)


def test_there_are_enough_and_no_two_are_the_same():
    assert len({(file, found, instead) for file, found, instead, _ in BROKEN}) == len(BROKEN) >= 50


def test_the_repository_passes(capsys):
    with pytest.raises(SystemExit) as ended:
        job.main([*(str(ROOT / folder) for folder in FOLDERS)])
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "0 findings" in said


def test_a_finding_is_at_the_line_of_its_key_also_in_a_text_within_a_file(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("# first\na:\n  b: 1\n  c:\n    - {d: 2}\ntext: |\n  x: 1\n  y:\n    z: 2\n")
    report = Report()
    document, = read_documents(file, report)
    assert [document.line(*place) for place in ((), ("a",), ("a", "c", 0, "d"), ("a", "c", 9, "unknown"))] == [2, 2, 5, 4]
    inner, = read_text_at(document, ("text",), report)
    assert inner.values == {"x": 1, "y": {"z": 2}} and inner.line("y", "z") == 9 and not report.findings


def test_a_misspelt_path_and_folder_of_crds_are_errors(tmp_path, capsys):
    for arguments in ([str(tmp_path / "nowhere")], [str(tmp_path), f"crds={tmp_path / 'nowhere'}"]):
        with pytest.raises(SystemExit, match="nowhere"):
            job.main(arguments)


def test_an_unknown_file_and_a_library_that_is_missing_are_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "mystery.yaml").write_text("colour: blue\n")
    shutil.copy(ROOT / AWS, tmp_path / "aws.yaml")
    monkeypatch.setitem(sys.modules, "jobs.validation.ray_up", None)
    with pytest.raises(SystemExit) as ended:
        job.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "mystery.yaml:1: this is none of the files that are known here; a run is called JOB_" in said
    assert "not checked: ray_up: needs jobs.validation.ray_up; pip install '.[dev]'" in said and "2 files, 1 findings" in said


def test_every_job_has_its_configuration_here():
    scripts = {file.stem: file.read_text() for file in (ROOT / "jobs").glob("*.py")}
    reading = {name: re.findall(r"parse_command_line\(([A-Z]\w+),", text) for name, text in scripts.items() if "parse_command_line" in text}
    assert set(JOBS) == set(reading)
    for name, (model, *_) in ((name, found) for name, found in reading.items() if JOBS[name]):
        assert JOBS[name].endswith(f":{model}"), name


@pytest.mark.parametrize(("command", "problem"), [
    ("python -m jobs.trian --config x", "there is no such job; did you mean 'train'?"),
    ("python -m jobs.train --config jobs/configs/train_tiny.yaml", "jobs/configs/train_tiny.yaml does not exist; did you mean"),
    ("cd /app && python -m jobs.train --config jobs/configs/train_tiny_cpu.yaml step=3 && echo done", "step: unknown key; did you mean"),
    ("python -m jobs.prepare_data source=coc", "unknown source 'coc'; did you mean 'coco'?"),
    ("python -m jobs.benchmark suite=sizes", "suite: 'sizes' is none; did you mean 'size'?"),
    ("python -m jobs.evaluate 'shards=x", "the shell cannot read this command"),
])
def test_commands_of_jobs(command, problem):
    found, = problems_of_commands(command)
    assert problem in found


def test_commands_that_are_right():
    assert problems_of_commands("python -m jobs.train --config jobs/configs/train_tiny_cpu.yaml steps=3 'data=[a]'; python -m pytest") == []
