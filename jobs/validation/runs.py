"""Run YAMLs of all jobs, deployments (`serve/configs`), Ray Serve's own configuration files, and the commands that name a run."""

import importlib
import itertools
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from jobs.validation.documents import Document, Place, Report
from pixellm.errors import ConfigError, YamlError
from pixellm.settings import StrictModel, did_you_mean, find_problems, read_values
from serve.config import AppConfig

ROOT = Path(__file__).resolve().parents[2]  # where jobs run: /app of the images
# The configuration of each job. A file's name begins with the first word of its job's.
JOBS = {
    "ask": "jobs.ask:AskConfig", "benchmark": "", "convert_checkpoint": "jobs.convert_checkpoint:ConvertConfig",
    "ablate": "pixellm.train.ablation:AblateConfig", "curate": "pixellm.curation.config:CurateConfig", "deploy": "serve.config:AppConfig",
    "evaluate": "pixellm.evaluation.evaluate:EvaluateConfig", "export": "jobs.export:ExportConfig",
    "inspect_data": "jobs.inspect_data:InspectConfig", "predict": "pixellm.inference.predict:PredictConfig", "prepare_data": "",
    "pretrain_tower": "pixellm.train.tower:TowerConfig", "train": "jobs.train:TrainJob", "undeploy": "jobs.undeploy:UndeployConfig",
}
WORDS = {job.partition("_")[0]: job for job in JOBS}
BUILD_APP = "serve.app:build_app"
COMMAND_END = frozenset({"&&", "||", "|", ";", "&"})


def config_class(job: str, values: dict[str, Any]) -> type[StrictModel]:
    """The class of a job's configuration; two have one for each source or suite. Raises ConfigError."""
    if job == "prepare_data":
        from jobs.prepare_data import build_config_class
        return build_config_class(str(values.get("source", "")))
    if job == "benchmark":
        from jobs.benchmarks import SUITES
        suite = str(values.get("suite", ""))
        if suite not in SUITES:
            raise ConfigError(f"suite: {suite!r} is none; {did_you_mean(suite, SUITES, 'known suites')}")
        return importlib.import_module(f"jobs.benchmarks.{suite}").Config
    return pkgutil.resolve_name(JOBS[job])


def check_run(document: Document, report: Report) -> None:
    """A file of `jobs/configs`: of the job whose first word its name begins with."""
    job = WORDS[first_word(document.file)]
    values = _read_as_job(document, report)
    try:
        model = config_class(job, values)
    except ConfigError as error:
        report.add(document, ("source",), str(error))
        return
    report.add_problems(document, model, values=values)


def first_word(file: Path) -> str:
    """By which a run's file is known."""
    return re.split(r"[_.]", file.name)[0]


def check_deployment(document: Document, report: Report) -> None:
    """A file of `serve/configs`."""
    report.add_problems(document, AppConfig, values=_read_as_job(document, report))


def _read_as_job(document: Document, report: Report) -> dict[str, Any]:
    """The values as the job reads them: words keep the form that they were written in until their type is known."""
    try:
        return read_values(document.file)
    except YamlError as error:
        report.add_line(document.file, error.line, error.what)
    except ConfigError as error:
        report.add(document, (), str(error))
    return document.values


def check_serve(document: Document, report: Report) -> None:
    """Ray Serve's own form, in a file or in a RayService: Ray ignores what it does not know, and looks into no `args`."""
    report.add_problems(document, ServeDeploySchema)
    _check_known(document, ServeDeploySchema, (), report)
    for place, application in document.entries("applications"):
        if (path := application.get("import_path")) != BUILD_APP:
            report.add(document, (*place, "import_path"), f"import_path is {path}; this project's application is {BUILD_APP}")
            continue
        if not report.add_problems(document, AppConfig, (*place, "args")):
            continue
        for key, default in (("host", "0.0.0.0"), ("port", 8000)):
            listens, says = document.at("http_options", key, default=default), getattr(AppConfig(**application["args"]), key)
            if listens != says:
                report.add(document, (*place, "args", key), f"args.{key} is {says}, but Serve listens on http_options.{key} {listens}; "
                           "write the same twice: by its args the application decides who has to have a key")


def _check_known(document: Document, model: type[BaseModel], place: Place, report: Report) -> None:
    values = document.at(*place)
    if isinstance(values, list):
        for index in range(len(values)):
            _check_known(document, model, (*place, index), report)
    elif isinstance(values, dict):
        for key in values:
            if key not in model.model_fields:
                report.add(document, (*place, key), f"{key}: unknown key, which Ray Serve would ignore; "
                           + did_you_mean(str(key), model.model_fields, "known keys"))
            elif inner := _model_in(model.model_fields[key].annotation):
                _check_known(document, inner, (*place, key), report)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def check_commands(report: Report) -> None:
    """Each `python -m jobs.NAME …` in a document: the job is there, its file too, and file and overrides make its configuration."""
    for document in report.documents:
        for place, text in _texts(document.values):
            for problem in problems_of_commands(text):
                report.add(document, place, problem)


def problems_of_commands(text: str) -> list[str]:
    """What is wrong with the jobs that a shell command starts."""
    if "-m jobs" not in text:
        return []
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split, lexer.commenters = True, ""
        words = list(lexer)
    except ValueError as error:
        return [f"the shell cannot read this command: {error}; close the quotes"]
    problems = []
    for index, word in enumerate(words[:-1]):
        if word == "-m" and words[index + 1].startswith("jobs."):
            rest = words[index + 2:]
            end = next((place for place, each in enumerate(rest) if each in COMMAND_END), len(rest))
            problems += _problems_of_command(words[index + 1].removeprefix("jobs."), rest[:end])
    return problems


def _problems_of_command(job: str, arguments: list[str]) -> list[str]:
    if job not in JOBS:
        return [f"python -m jobs.{job}: there is no such job; {did_you_mean(job, JOBS, 'jobs')}"]
    files = [after for before, after in itertools.pairwise(arguments) if before == "--config"]
    overrides = [each for each in arguments if each not in ("--config", "--help", "-h", *files)]
    if job == "inspect_data" and overrides and "=" not in overrides[0]:
        overrides[0] = f"uri={overrides[0]}"
    if files and not (ROOT / files[0]).is_file():
        configs = [str(each.relative_to(ROOT)) for each in ROOT.glob("*/configs/*.yaml")]
        return [f"python -m jobs.{job}: {files[0]} does not exist; {did_you_mean(files[0], configs, 'files')}"]
    try:
        values = read_values(ROOT / files[0] if files else None, overrides)
        problems = find_problems(config_class(job, values), values)
    except ConfigError as error:
        return [f"python -m jobs.{job}: {error}"]
    return [f"python -m jobs.{job}: {'.'.join(map(str, place))}: {problem}" for place, problem in problems]


def _texts(value: Any, place: Place = ()) -> list[tuple[Place, str]]:
    if isinstance(value, str):
        return [(place, value)]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [text for key, inner in pairs for text in _texts(inner, (*place, key))]
