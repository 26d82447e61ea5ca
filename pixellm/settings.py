"""Strict configuration: frozen pydantic models read from YAML, with `key=value` overrides from the command line."""

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pixellm.errors import ConfigError
from pixellm.plain_yaml import Typed, decode_yaml, parse_yaml
from pixellm.typed_values import to_typed

PACKAGE_ROOT = Path(__file__).resolve().parents[1]  # holds jobs/configs and serve/configs


class StrictModel(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=StrictModel)

# The seed of a run: any int64. NumPy takes none below 0, so those stand for the numbers that have the same lower 63 bits.
Seed = Annotated[int, Field(ge=-2**63, lt=2**63), AfterValidator(lambda seed: seed % 2**63)]


def build_config(model: type[ConfigT], values: dict[str, Any], where: str = "configuration") -> ConfigT:
    """Validate `values` into `model`. Raises ConfigError that lists every problem; an unknown key names the nearest right one."""
    try:
        return model.model_validate(to_typed(values, model))
    except ValidationError as error:
        lines = [": ".join(filter(None, [".".join(map(str, place)), problem])) for place, problem in _describe(model, error)]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def find_problems(model: type[BaseModel], values: Any) -> list[tuple[tuple[int | str, ...], str]]:
    """The keys that lead to each problem of `values`, and what it is; none where they make a `model`."""
    try:
        model.model_validate(to_typed(values, model))
    except ValidationError as error:
        return _describe(model, error)
    except ConfigError as error:
        return [((), str(error))]
    return []


def load_yaml(path: str | Path, model: type[ConfigT], overrides: list[str] | tuple[str, ...] = ()) -> ConfigT:
    """Read `path` and apply `key.sub=value` overrides (`steps=3`, `names=[a,b]`): for a key of text, the value as it is typed."""
    return build_config(model, read_values(path, overrides), where=str(path))


def read_values(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a file, where one is given, and of overrides, with words as they were written: `build_config` knows their types.

    A file that ships with the package, such as `jobs/configs/train_tiny_cpu.yaml`, is found from any working directory.
    Raises ConfigError: no such file, not YAML, a key that is given twice.
    """
    if path is None:
        return _override({}, overrides)
    file = next((each for each in (Path(path), PACKAGE_ROOT / path) if each.is_file()), Path(path))
    if not file.is_file():
        raise ConfigError(f"configuration file {file} does not exist")
    values = parse_yaml(decode_yaml(file.read_bytes(), str(file)), str(file))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}, expected keys and values")
    return _override(values, overrides)


def did_you_mean(name: str, known: Iterable[str], called: str) -> str:
    """Names the one of `known` that is nearest to `name`, or all of them where none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"{called}: {', '.join(names)}"


def parse_command_line(model: type[ConfigT], description: str, argv: list[str] | None = None) -> ConfigT:
    """The command line of every job: `python -m jobs.NAME [--config FILE] key=value …`."""
    parser = argparse.ArgumentParser(description=description, epilog="\n".join(["keys:", *_describe_keys(model)]),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", action="append", help="YAML file with the keys below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the file's")
    arguments = parser.parse_args(argv)
    files = arguments.config or [None]
    try:
        if len(files) > 1:
            raise ConfigError(f"--config is given twice, {files[0]} and {files[1]}; keep one")
        return build_config(model, read_values(files[0], arguments.overrides), where=files[0] or "command line")
    except ConfigError as error:
        parser.exit(2, f"error: {error}\n")


def _override(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        *parents, leaf = path = tuple(key.split("."))
        if not equals or not all(path):
            raise ConfigError(f"override {override!r} is not of the form key=value")
        for other, earlier in given.items():
            if path[:len(other)] == other[:len(path)]:  # the same key, or one inside the other
                shorter = path if len(path) < len(other) else other
                raise ConfigError(f"{'.'.join(shorter)} is given twice, as {earlier!r} and {override!r}; keep one")
        given[path] = override
        node = values
        for parent in parents:
            inner = node.get(parent)
            node[parent] = node = {} if inner is None or inner == "" else inner
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {parent} is {node!r}, it has no keys")
        node[leaf] = Typed(text)
    return values


def _describe(model: type[BaseModel], error: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    described = []
    for problem in error.errors():
        place = problem["loc"]
        if problem["type"] == "extra_forbidden":
            text = f"unknown key; {_nearest(model, place)}"
        else:
            text = problem["msg"].removeprefix("Value error, ") + (f", found {problem['input']!r}" if place else "")
        described.append((place, text))
    return described


def _nearest(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Says which known key the last part of `location` is closest to, looking in the sub-model that holds it."""
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _sub_model(model.model_fields[part].annotation) or model
    return did_you_mean(str(location[-1]), [field.alias or name for name, field in model.model_fields.items()], "known keys")


def _sub_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _sub_model(part))), None)


def _describe_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """A line for each key; those of a sub-model with its name before theirs."""
    lines = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += _describe_keys(field.annotation, f"{prefix}{name}.")
        else:
            description = f"  {field.description}" if field.description else ""
            lines.append(f"  {prefix}{name}: {_type_name(field)}{_default(field)}{description}")
    return lines


def _type_name(field: Any) -> str:
    return field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation).replace("typing.", "")


def _default(field: Any) -> str:
    return " (required)" if field.is_required() else f" = {field.get_default(call_default_factory=True)!r}"
