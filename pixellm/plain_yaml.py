"""YAML whose plain words stay as they were written until the type of their key is known: then `yes`, `010`, `1.10` and `12:30` are text
where text is wanted, and never the truth, 8, 1.1 and 750 that YAML 1.1 makes of them.

What settings.py reads, from files and from the command line, passes through here. What the words mean is typed_values.py's.
"""

from collections.abc import Iterator

import yaml

from pixellm.errors import YamlError


class Written(str):
    """A plain word of YAML, as it was written."""


class Typed(str):
    """A value of the command line, as it was typed."""


class _Loader(yaml.SafeLoader):
    """Plain scalars stay as written. Of the rules that guess a type by the text, only that of the merge key `<<` is left."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012

    def construct_written(self, node: yaml.ScalarNode) -> str:
        """A style is a quote, or one of the bars of a block; a plain word has none."""
        text = str(self.construct_scalar(node))
        return text if node.style else Written(text)


for _tag in ("str", "int", "float", "bool", "null", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_written)


def decode_yaml(data: bytes, name: str) -> str:
    """The text of a file, with or without a byte order mark. Raises YamlError for another encoding than UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise YamlError(name, 1, "not YAML: the file is UTF-16; save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(name, data.count(b"\n", 0, error.start) + 1, f"not YAML: byte 0x{data[error.start]:02x} is not UTF-8 (Latin-1, or "
                        "another old encoding); save the file as UTF-8 text") from None


def parse_yaml(text: str, name: str) -> object:
    """The one document of `text`, None where it is empty; plain words are `Written`.

    Raises YamlError: not YAML, several documents, or a key that is there twice.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        for key, first_line, line in find_doubles(node):
            raise YamlError(name, line, describe_double(key, first_line, line))
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise to_yaml_error(error, name) from None
    except RecursionError:
        raise YamlError(name, 1, "not YAML: values inside values, too many to follow; make them flatter") from None


def parse_value(text: str, name: str) -> object:
    """A value of the command line as YAML. Raises YamlError like `parse_yaml`, and for a comment, which would be dropped."""
    value = parse_yaml(text, name)
    end = max(token.end_mark.index for token in yaml.scan(text) if not isinstance(token, yaml.StreamEndToken | yaml.BlockEndToken))
    if text[end:].strip():
        raise YamlError(name, 1, f"YAML takes {text[end:].strip()!r} for a comment; leave it out, or quote it")
    return value


def to_yaml_error(error: yaml.YAMLError, name: str) -> YamlError:
    """The parser's error with its line and the next step."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return YamlError(name, 1, f"not YAML: {' '.join(str(error).split())}; write it as UTF-8 text")
    step = "indent with spaces, not with tabs" if r"'\t'" in (error.problem or "") else "correct the indentation or the quotes around here"
    return YamlError(name, error.problem_mark.line + 1, f"not YAML: {error.problem or error.context}; {step}")


def find_doubles(node: yaml.Node) -> Iterator[tuple[str, int, int]]:
    """Each key that is there twice in one mapping at or below `node`, with the lines of both, counted from 1."""
    seen: set[int] = set()  # an alias is the node of its anchor
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, yaml.SequenceNode):
            waiting += each.value
        elif isinstance(each, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in each.value:
                waiting += key, value
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in lines:
                    yield key.value, lines[key.value], key.start_mark.line + 1
                lines.setdefault(key.value, key.start_mark.line + 1)


def describe_double(key: object, first_line: int, line: int) -> str:
    """The message about a key that is there twice."""
    where = f"on lines {first_line} and {line}" if first_line != line else f"on line {line}"
    return f"{key} is there twice, {where}; keep one"
