"""Words of a configuration -> values of the types that their keys have. Text stays as it was written; all else is YAML 1.2's core schema.

Only words are looked at (`Written`, `Typed`): values that a program gives pass as they are.
"""

import re
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pixellm.errors import ConfigError
from pixellm.plain_yaml import Typed, Written, parse_value

_INT = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}

Place = tuple[int | str, ...]
Members = tuple[Any, ...]  # the types that may stand in one place


def to_typed(value: Any, annotation: Any) -> Any:
    """`value`, of words in lists and mappings, as `annotation` wants it; what does not fit is left to the validation.

    Raises ConfigError: a word of the command line that is not YAML where no text is wanted, and a word that YAML 1.1 and 1.2 read
    differently where any type is wanted.
    """
    try:
        return _to_typed(value, tuple(_members(annotation)), ())
    except RecursionError:
        raise ConfigError("values inside values, too many to follow (does an alias refer to itself?); make them flatter") from None


def _to_typed(value: Any, members: Members, place: Place) -> Any:
    if isinstance(value, Typed):
        return _from_typed(value, members, place)
    if isinstance(value, Written):
        return None if to_core(value) is None else _from_word(value, members, place)
    if isinstance(value, dict):
        return {str(key) if isinstance(key, Written) else key: _to_typed(inner, _members_at_key(members, str(key)), (*place, str(key)))
                for key, inner in value.items()}
    if isinstance(value, list):
        return [_to_typed(inner, _members_at_index(members, index), (*place, index)) for index, inner in enumerate(value)]
    return value


def _from_typed(text: str, members: Members, place: Place) -> Any:
    if members == ():
        return str(text)
    if not any(map(_is_text, members)):
        return _to_typed(parse_value(text, _name(place, text)), members, place)
    if to_core(text) is None:  # `~` is a folder, and no text is text
        return None if text == "null" and types.NoneType in members else str(text)
    if text.lstrip().startswith(("[", "{", "- ")) and not all(_is_text(member) or _is_scalar(member) for member in members):
        try:
            parsed = parse_value(text, _name(place, text))
        except ConfigError:
            parsed = None
        if isinstance(parsed, dict | list):
            return _to_typed(parsed, members, place)
    return _from_word(text, members, place)


def _from_word(word: str, members: Members, place: Place) -> Any:
    text, core = str(word), to_core(word)
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if text not in choices and (core in choices or type(core) in members or (type(core) is int and float in members)):
        return core
    if any(map(_is_text, members)):
        return text
    if Any in members and _differs(text, core):
        raise ConfigError(f"{_name(place, text)}: YAML readers disagree about the word {text}; write true, false, a decimal number, or "
                          "text in quotes")
    return core


def to_core(text: str) -> Any:
    """The value of a plain word in YAML 1.2's core schema: None, a truth, a number, or the text."""
    if text.lower() in _WORDS and text in (text.lower(), text.upper(), text.capitalize()):
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _differs(text: str, core: Any) -> bool:
    """Tell whether YAML 1.1 makes another truth or whole number of `text`."""
    try:
        old = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return False
    return isinstance(old, int) and old != core


def _members(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, without the wrappings."""
    if hasattr(annotation, "__value__"):  # type X = …
        yield from _members(annotation.__value__)
    elif isinstance(annotation, NewType):
        yield from _members(annotation.__supertype__)
    elif get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def _is_text(member: Any) -> bool:
    if get_origin(member) is Literal:
        return any(isinstance(choice, str) for choice in get_args(member))
    return isinstance(member, type) and issubclass(member, str | PurePath)


def _is_scalar(member: Any) -> bool:
    return member in (int, float, bool, types.NoneType) or get_origin(member) is Literal


def _members_at_key(members: Members, key: str) -> Members:
    """The types that may stand at `key` of a mapping; none where no type has this key, which the validation then says."""
    found: list[Any] = []
    for member in members:
        origin = get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, BaseModel):
            found += [field.annotation for name, field in origin.model_fields.items() if key in (name, field.alias)]
        elif member is Any:
            found.append(Any)
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            found.append((get_args(member) or (Any, Any))[1])
    return tuple(part for annotation in found for part in _members(annotation))


def _members_at_index(members: Members, index: int) -> Members:
    """The types that may stand at `index` of a list."""
    found: list[Any] = []
    for member in members:
        origin, arguments = get_origin(member) or member, get_args(member)
        if member is Any or member in (list, tuple, set, frozenset):
            found.append(Any)
        elif origin is tuple and Ellipsis not in arguments:
            found += arguments[index:index + 1]
        elif isinstance(origin, type) and issubclass(origin, Collection) and not issubclass(origin, Mapping) and arguments:
            found.append(arguments[0])
    return tuple(part for annotation in found for part in _members(annotation))


def _name(place: Place, text: str) -> str:
    return f"{'.'.join(map(str, place))}={text}"
