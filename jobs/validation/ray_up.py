"""Clusters for `ray up`: Ray's own schema, and what that lets pass (node settings of AWS, flags of `ray start`, open doors)."""

import contextlib
import copy
import io
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import ray.autoscaler
from botocore.validate import ParamValidator
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from jobs.validation.documents import Document, Place, Report
from jobs.validation.schemas import add_schema_errors
from pixellm.settings import did_you_mean

COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
PROVIDER_KEYS = {"coordinator_address"}  # of a list of hosts; the schema does not name it
START_FLAGS = {flag for parameter in start.params for flag in parameter.opts}


def check_cluster(document: Document, report: Report) -> None:
    """A whole file."""
    if _check_schema(document, report):
        _check_prepared(document, report)
    _check_provider(document, report)
    for name, node_type in document.at("available_node_types", default={}).items():
        if isinstance(node_type, dict):
            _check_node_type(document, name, node_type, report)
    _check_token(document, report)
    for key in COMMANDS:
        commands = document.at(key)
        if not commands:
            report.add(document, (key,), f"{key} is missing: Ray's default starts no node with a token; write the commands")
        elif isinstance(commands, list):
            _check_start(document, key, " ; ".join(map(str, commands)), report)


@cache
def _schema() -> dict[str, Any]:
    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def _check_schema(document: Document, report: Report) -> bool:
    schema = _schema()
    if document.at("provider", "type") == "local":  # Ray takes it out before it looks at its schema
        schema = {**schema, "properties": {**schema["properties"], "min_workers": {"type": "integer", "minimum": 0}}}
    return add_schema_errors(document, jsonschema.Draft7Validator(schema), report)


def _check_prepared(document: Document, report: Report) -> None:
    """What `ray up` does first. Where Ray gives up it prints and exits."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            validate_config(prepare_config(copy.deepcopy(document.values)))
    except (Exception, SystemExit) as error:
        said = " ".join(str(getattr(error, "message", error)).split()) or printed.getvalue().strip()
        report.add(document, ("head_node_type",) if "head_node_type" in said else (), f"ray up would stop: {said}")


def _check_provider(document: Document, report: Report) -> None:
    provider = document.at("provider", default={})
    known = {*_schema()["properties"]["provider"]["properties"], *PROVIDER_KEYS}
    for key in provider:
        if key not in known:
            report.add(document, ("provider", key), f"provider.{key}: unknown key, which Ray would ignore; "
                       + did_you_mean(str(key), known, "known keys"))
    hosts = [provider.get("head_ip"), *document.at("provider", "worker_ips", default=[])]
    for index, host in enumerate(hosts[1:]):
        if hosts.index(host) <= index:
            report.add(document, ("provider", "worker_ips", index), f"{host} is there twice; each host is one node")
    for place, rule in document.entries("provider", "security_group", "IpPermissions"):
        if "0.0.0.0/0" in str(rule) or "::/0" in str(rule):
            first, last = rule.get("FromPort", "all"), rule.get("ToPort", rule.get("FromPort", "all"))
            ports = f"port {first} is" if first == last else f"ports {first} to {last} are"
            report.add(document, place, f"{ports} open to the whole internet; name the networks that may, and reach the dashboard through "
                       "`ray dashboard`: Serve's replicas run what they unpickle at ports that the system chooses")


def _check_token(document: Document, report: Report) -> None:
    """The token reaches the nodes: as a file, or as a variable of a file on each host."""
    mounted = [str(path) for path in document.at("file_mounts", default={})]
    options = str(document.at("docker", default={}))
    if not any(path.endswith(".ray/auth_token") for path in mounted) and "RAY_AUTH_TOKEN" not in options:
        report.add(document, ("file_mounts",), "no node has Ray's token; write file_mounts: {/home/ray/.ray/auth_token: ~/.ray/auth_token}")


def _check_node_type(document: Document, name: str, node_type: dict[str, Any], report: Report) -> None:
    place = ("available_node_types", name)
    lowest, highest = node_type.get("min_workers", 0), node_type.get("max_workers", document.at("max_workers", default=0))
    if isinstance(lowest, int) and isinstance(highest, int) and lowest > highest:
        report.add(document, (*place, "min_workers"), f"min_workers is {lowest}, max_workers {highest}; the second is the most")
    if name != document.at("head_node_type") and lowest and document.at(*place, "resources", "GPU"):
        report.add(document, (*place, "min_workers"), f"min_workers is {lowest}: GPU nodes that wait cost as much as those that work; "
                   "write 0, the autoscaler starts them")
    try:
        validate_node_label_syntax({str(key): str(value) for key, value in document.at(*place, "labels", default={}).items()})
    except ValueError as error:
        report.add(document, (*place, "labels"), f"labels: {error}")
    if document.at("provider", "type") == "aws" and isinstance(node_type.get("node_config"), dict):
        for keys, problem in _ec2_problems(node_type["node_config"]):
            report.add(document, (*place, "node_config", *keys), f"node_config: {problem}")
        if not {"SecurityGroupIds", "NetworkInterfaces"} & set(node_type["node_config"]):
            report.add(document, (*place, "node_config"), "no SecurityGroupIds: Ray would make a group whose port 22 is open to the whole "
                       "internet; name your own")
        if not node_type["node_config"].get("IamInstanceProfile"):
            report.add(document, (*place, "node_config"), "no IamInstanceProfile: the node could not read S3; name the instance profile "
                       "whose role may, as the other node types do")


@cache
def _run_instances() -> Any:
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _ec2_problems(node_config: dict[str, Any]) -> list[tuple[Place, str]]:
    """What EC2's RunInstances, which gets these settings, does not know, by boto3's own model of it: the key, and the problem."""
    found = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, _run_instances()).generate_report()
    problems: list[tuple[Place, str]] = []
    for line in filter(None, found.splitlines()):
        unknown = re.search(r'Unknown parameter in (\S+): "([^"]+)", must be one of: (.*)', line)
        named = unknown[2] if unknown and unknown[1] == "input" else re.findall(r"(?:parameter|in) (\w+)", line)[-1]
        if unknown:
            line = f"{unknown[2]}: unknown key of {unknown[1]}; {did_you_mean(unknown[2], unknown[3].split(', '), 'known keys')}"
        problems.append(((named,), line))
    return problems


def _check_start(document: Document, key: str, commands: str, report: Report) -> None:
    """The commands that start Ray on a node."""
    place = (key,)
    if "RAY_AUTH_MODE=token" not in commands and "RAY_AUTH_MODE=token" not in str(document.at("docker")):
        report.add(document, place, f"{key}: whoever reaches the cluster could run code on it; put RAY_AUTH_MODE=token before `ray start`")
    words = shlex.split(commands)
    begun = [index for index, word in enumerate(words[:-1]) if word == "ray" and words[index + 1] == "start"]
    if not begun:
        report.add(document, place, f"{key} never calls `ray start`; write the command that starts Ray on the node")
        return
    flags = [word.partition("=")[0] for word in words[begun[-1]:] if word.startswith("--")]
    for flag in flags:
        if flag not in START_FLAGS:
            report.add(document, place, f"ray start {flag}: unknown flag; {did_you_mean(flag, START_FLAGS, 'known flags')}")
    is_head = key.startswith("head")
    needed = {"--head": is_head, "--address": not is_head, "--autoscaling-config": is_head}
    for flag in (flag for flag, wanted in needed.items() if wanted and flag not in flags):
        report.add(document, place, f"{key}: `ray start` lacks {flag}; the node would not be part of this cluster")
    hosts = re.findall(r"--dashboard-host[= ](\S+)", commands)
    if is_head and hosts != ["127.0.0.1"]:
        report.add(document, place, f"the dashboard listens on {hosts[0] if hosts else 'what Ray thinks best'}; write "
                   "--dashboard-host=127.0.0.1 and reach it through `ray dashboard`")
