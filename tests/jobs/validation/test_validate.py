"""jobs.validate: what the repository holds passes, and each of many broken files fails with the message that says what to write."""

import copy
import functools
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs import validate as job
from jobs.validation.check import SUFFIXES, check_document, check_together, validate
from jobs.validation.documents import Report, find_all, read_documents, read_text_at
from jobs.validation.kustomize import build
from jobs.validation.runs import JOBS, problems_of_commands
from pixellm.settings import load_yaml
from serve.config import AppConfig
from tests.conftest import ROOT
from tests.jobs.validation.broken import AWS, BROKEN, ELSEWHERE, RAY_KEYS

FOLDERS = ("platform", "jobs/configs", "serve/configs")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of all files that are checked, at the same places."""
    root = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder)
    return root


@pytest.mark.parametrize(("file", "found", "instead", "message"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_broken_file_is_found(tree, file, found, instead, message, request):
    good = (ROOT / file).read_text()
    assert found in good, f"{file} no longer has {found!r}: write another edit"
    crds = None
    if (file, found, instead, message) in RAY_KEYS:
        crds = str(request.getfixturevalue("shared_dir") / "crds")
    # Files of overlays only say what is wrong together with the others.
    together = "platform/kuberay" in file
    (tree / file).write_text(good.replace(found, instead, 1))
    try:
        report = validate([str(tree / "platform/kuberay"), str(tree / "platform/docker")] if together else [str(tree / file)], crds)
    finally:
        (tree / file).write_text(good)
    found_here = [str(each) for each in sorted(report.findings)]
    assert any(message in each for each in found_here), found_here
    assert any(each.startswith(str(tree / file)) for each in found_here if message in each) or file in ELSEWHERE, found_here


def test_there_are_enough_and_no_two_are_the_same():
    assert len({(file, found, instead) for file, found, instead, _ in BROKEN}) == len(BROKEN) >= 60


def test_the_repository_passes(capsys):
    with pytest.raises(SystemExit) as ended:
        job.main([*(str(ROOT / folder) for folder in FOLDERS)])
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "0 findings" in said and "not checked: keys of ray.io/v1 RayCluster: no schema; give the folder of its CRDs" in said


def test_the_repository_passes_with_kuberays_schemas(shared_dir):
    report = validate([str(ROOT / folder) for folder in FOLDERS], str(shared_dir / "crds"))
    assert not report.findings and not report.unchecked


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
    (tmp_path / "train_nothing.yaml").write_text("# later\n")
    shutil.copy(ROOT / AWS, tmp_path / "aws.yaml")
    monkeypatch.setitem(sys.modules, "jobs.validation.ray_up", None)
    with pytest.raises(SystemExit) as ended:
        job.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "mystery.yaml:1: this is none of the files that are known here; a run is called JOB_" in said
    assert "train_nothing.yaml:1: there is nothing in it" in said
    assert "not checked: ray_up: needs jobs.validation.ray_up; pip install '.[dev]'" in said and "3 files, 2 findings" in said


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


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_overlays_come_out_as_kubectl_builds_them(overlay):
    command = [shutil.which("kustomize"), "build"] if shutil.which("kustomize") else [shutil.which("kubectl"), "kustomize"]
    if command[0] is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    folder = ROOT / f"platform/kuberay/overlays/{overlay}"
    theirs = list(yaml.safe_load_all(subprocess.run([*command, str(folder)], capture_output=True, check=True).stdout))
    report = Report()
    ours = build(read_documents(folder / "kustomization.yaml", report)[0], report)
    assert ours is not None and not report.findings and len(ours) == len(theirs)
    assert all(each.values in theirs for each in ours)


def test_the_served_model_of_prod_is_that_of_serve_configs_7b():
    overlay, = read_documents(ROOT / "platform/kuberay/overlays/prod/serve.yaml", report := Report())
    value = next(each["value"] for each in overlay.values if each["path"] == "/spec/serveConfigV2")
    args = yaml.safe_load(value)["applications"][0]["args"]
    assert not report.findings
    here = AppConfig(**args)
    there = load_yaml(ROOT / "serve/configs/7b.yaml", AppConfig)
    assert here.model_dump(exclude={"host", "api_keys"}) == there.model_dump(exclude={"host", "api_keys"})


def test_pods_that_serve_have_the_variables_of_serve_sh():
    command = ["env", "-i", "bash", "-c", "source platform/serve.sh && env -0"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    pairs = [each.partition("=") for each in said.replace(str(ROOT), "/app").split("\0")]
    wanted = {name: value for name, _, value in pairs if name.startswith("RAY_SERVE_")}
    service = yaml.safe_load((ROOT / "platform/kuberay/base/service.yaml").read_text())
    containers = find_all(service, "containers")
    assert wanted and all({each["name"]: each["value"] for each in found[0]["env"]} == wanted for _, found in containers)


WRONG = (None, 5, "text", [], {}, [1], {"a": 1}, [None], True)


def places(value, place=()):
    yield place
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*place, key))


@pytest.mark.parametrize("seed", range(60))
def test_a_value_of_a_wrong_type_anywhere_is_told_and_never_a_crash(seed):
    """The checks that follow a schema look at files that did not pass it, too."""
    draw = random.Random(seed)
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*")) if file.suffix in SUFFIXES]
    document = draw.choice(read_documents(draw.choice(files), Report()))
    *way, last = draw.choice([place for place in places(document.values) if place])
    values = copy.deepcopy(document.values)
    functools.reduce(lambda value, key: value[key], way, values)[last] = draw.choice(WRONG)
    report = Report()
    check_document(replace(document, values=values), report)
    check_together(report)
    assert all(isinstance(each.line, int) and each.what for each in report.findings)
