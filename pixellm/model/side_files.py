"""Files beside weights, as hubs, stores and editors leave them: what each one holds is looked at before anything else reads it.

A pointer of Git LFS, an error page or half a file is named as what it is; the readers behind would fail in words of their own, or not.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from pixellm.errors import ModelError

BOM = b"\xef\xbb\xbf"
JSON_NAMES = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
              "added_tokens.json", "special_tokens_map.json", "generation_config.json", "chat_template.json")
TEXT_NAMES = ("chat_template.jinja",)
MAX_SHOWN = 40


def describe_damage(data: bytes) -> str | None:
    """A description of what stands in the place of a file, to follow "is"; None where nothing looks wrong."""
    start = data[:1024].removeprefix(BOM).strip()
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself (git lfs pull fetches it)"
    if start[:1] == b"<" and any(tag in start.lower() for tag in (b"<html", b"<!doctype", b"<head", b"<body", b"<?xml", b"<error")):
        return "a page that a server sent in its place (a login or an error)"
    if not start.strip(b"\0"):
        return "made of zeros (a download that was never finished)"
    if start[:4] in (b"404:", b"403:", b"401:", b"500:") or start.lower() in (b"not found", b"entry not found", b"access denied"):
        return f"the message {_shown(start)} of a server"
    return None


def check_not_damaged(file: Path) -> bytes:
    """The content of `file`. Raises ModelError for what stands in place of it, and for a file that cannot be read."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error}); check its permissions") from None
    if damage := describe_damage(data):
        raise ModelError(f"{file} is {damage}; fetch it again")
    return data


def read_json_object(file: Path) -> dict[str, Any]:
    """The keys and values of a JSON file, with or without a byte order mark. Raises ModelError that names the file and what it holds."""
    data = check_not_damaged(file)
    try:
        values = json.loads(data.removeprefix(BOM).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not whole JSON in UTF-8 ({error}); it begins with {_shown(data)}; fetch it again") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file} is a {type(values).__name__} in JSON, expected keys and values; fetch it again")
    return values


def check_index(file: Path) -> dict[str, str]:
    """The shard of each tensor, as the index says. Raises ModelError for a shard that is not there, by the name of its file."""
    shards = read_json_object(file).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{file} has no weight_map of tensors to files; fetch it again")
    for name in sorted(set(shards.values())):
        if PurePosixPath(name).name != name or name == "..":
            raise ModelError(f"{file} names the shard {name!r}, which is not the name of a file beside it; fetch it again")
        if not (file.parent / name).is_file():
            num_missing = len({each for each in shards.values() if not (file.parent / each).is_file()})
            raise ModelError(f"{file.parent / name} is missing, one of {num_missing} files that {file.name} names and the folder lacks; "
                             "fetch it again")
    return shards


def check_model_dir(folder: Path) -> None:
    """Raises ModelError that names the file, where a model directory of ours holds something else than its files, or lacks one."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give a model directory, as jobs.export and jobs.convert_checkpoint write it")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}; give a model directory, as jobs.export and jobs.convert_checkpoint write it")
    for name in JSON_NAMES:
        if (folder / name).is_file():
            read_json_object(folder / name)
            if (folder / name).read_bytes().startswith(BOM):
                raise ModelError(f"{folder / name} begins with a byte order mark, which an editor put there; save it as UTF-8 without one")
    for name in TEXT_NAMES:
        if (folder / name).is_file():
            check_not_damaged(folder / name)
    if (folder / "tokenizer.model").is_file():
        check_not_damaged(folder / "tokenizer.model")


def _shown(data: bytes) -> str:
    return repr(data[:MAX_SHOWN].decode(errors="replace"))
