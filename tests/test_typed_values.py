"""Words of files and of the command line become what the types of their keys say, and text stays as it was written."""

from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import pytest
from pydantic import Field

from pixellm.errors import ConfigError
from pixellm.settings import StrictModel, build_config, find_problems, load_yaml, parse_command_line, read_values

Name = NewType("Name", str)


class Inner(StrictModel):
    text: str = ""
    number: int = 0


class Everything(StrictModel):
    text: str = ""
    short: Annotated[str, Field(max_length=99)] = ""
    maybe: str | None = None
    several: str | list[str] = ""
    words: tuple[str, ...] = ()
    named: dict[str, str] = Field({})
    path: Path = Path()
    kind: Literal["no", "auto", "010"] = "auto"
    switch: Literal["auto", False] = "auto"
    number: int = 0
    share: float = 0.0
    flag: bool = False
    numbers: list[int] = Field([])
    either: int | str = 0
    maybe_number: int | None = 1
    inner: Inner = Inner()
    inners: tuple[Inner, ...] = ()
    own: Name = Name("")
    free: dict[str, Any] = Field({})


TEXTS = ["set #1", "Which one is #1?", "#tag", "Find this: the dog", "@home", "yes", "no", "on", "null", "~", "true", "010", "0x10", "1.10",
         "12:30", "2024-01-01", "1e3", "1_000", '"red" cup?', "'quoted'", " leading", "trailing ", "[x]", "[x", "{x}", "{a: 1}", "*star",
         "&and", "!bang", "%d", "- item", "? what", "a: b: c", "`tick`", "|", ">", "<<", "=", "a=b", "", "ünï ☃", "tab\there", "two\nlines",
         ".inf", "---", "...", "\\n", "{seg}"]


@pytest.mark.parametrize("text", TEXTS)
def test_on_the_command_line_text_is_what_was_typed(text):
    values = read_values(None, [f"{key}={text}" for key in ("text", "short", "own", "path", "inner.text", "named.x")])
    found = build_config(Everything, values)
    assert [found.text, found.short, found.own, found.inner.text, found.named["x"]] == [text] * 5
    assert found.path == Path(text)
    assert build_config(Everything, read_values(None, [f"maybe={text}"])).maybe == (None if text == "null" else text)
    assert parse_command_line(Everything, "", [f"text={text}"]).text == text


PLAIN = ["yes", "no", "on", "true", "010", "0x10", "1.10", "12:30", "2024-01-01", "1e3", "1_000", ".inf"]


@pytest.mark.parametrize("text", PLAIN)
def test_in_a_file_a_plain_word_is_text_where_text_is_wanted(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(f"text: {text}\nwords: [{text}, '{text}']\nnamed: {{{text}: {text}}}\ninners:\n- text: {text}\nmaybe: {text}\n")
    found = load_yaml(file, Everything, [f"several=[{text}, b]"])
    assert (found.text, found.words, found.named, found.inners[0].text) == (text, (text, text), {text: text}, text)
    assert found.several == [text, "b"] and found.maybe == text


@pytest.mark.parametrize(("override", "expected"), [
    ("number=010", 10), ("number=-3", -3), ("number=0x10", 16), ("number=1_000", 1000), ("share=1e-3", 1e-3), ("share=.5", 0.5),
    ("share=3", 3.0), ("share=010", 10.0), ("flag=true", True), ("flag=no", False), ("flag=True", True), ("maybe_number=null", None),
    ("maybe_number=", None), ("maybe_number=7", 7), ("numbers=[1, 010]", [1, 10]), ("numbers=[]", []), ("words=[a, yes, 'no', 1.10]",
    ("a", "yes", "no", "1.10")), ("several=[a, 010]", ["a", "010"]), ("several=a, b", "a, b"), ("several=[a", "[a"), ("kind=no", "no"),
    ("kind=010", "010"), ("switch=false", False), ("switch=auto", "auto"), ("either=5", 5), ("either=yes", "yes"),
    ("either=12:30", "12:30"),
    ("inner={text: yes, number: 010}", Inner(text="yes", number=10)), ("inners=[{text: no}]", (Inner(text="no"),)),
    ("named={a: yes, 010: 12:30}", {"a": "yes", "010": "12:30"}), ("free={a: 1e-3, b: [true, 10], c: text, d: 2024-01-01}",
    {"a": 1e-3, "b": [True, 10], "c": "text", "d": "2024-01-01"}), ("free={a: 'yes'}", {"a": "yes"})])
def test_other_types_are_yamls_of_today(override, expected, tmp_path):
    key, _, text = override.partition("=")
    found = getattr(build_config(Everything, read_values(None, [override])), key)
    assert found == expected and type(found) is type(expected)
    if key != "several":
        file = tmp_path / "run.yaml"
        file.write_text(f"{key}: {text}\n")
        assert getattr(load_yaml(file, Everything), key) == expected


@pytest.mark.parametrize(("override", "message"), [
    ("number=12:30", "number: Input should be a valid integer"), ("number=1:2:3", "number: Input"), ("share=1:30.5", "share: Input"),
    ("numbers=[12:30]", "numbers.0: Input"), ("number=5 #x", "number=5 #x:1: YAML takes '#x' for a comment"),
    ("numbers=[1] # one", "YAML takes '# one' for a comment"), ("number=#5", "for a comment"), ("numbers=[1", "numbers=[1:1: not YAML"),
    ("free={a: yes}", "free.a=yes: YAML readers disagree about the word yes"),
    ("free={a: 010}", "YAML readers disagree about the word 010"),
    ("free.x=12:30", "free.x=12:30: YAML readers disagree"), ("inner={number: 1, number: 2}", "number is there twice, on line 1; keep one"),
    ("nmuber=yes", "nmuber: unknown key; did you mean 'number'?"), ("number=*a", "not YAML: found undefined alias"),
    ("number=!!python/object:os.system x", "not YAML")])
def test_what_is_none_of_a_type_is_named(override, message):
    with pytest.raises(ConfigError) as error:
        build_config(Everything, read_values(None, [override]), "command line")
    assert message in str(error.value) and str(error.value).startswith("command line: ")
    assert find_problems(Everything, read_values(None, [override]))


@pytest.mark.parametrize(("overrides", "said"), [
    (["number=1", "number=2"], "number is given twice, as 'number=1' and 'number=2'; keep one"),
    (["number=1", "text=x", "number=1"], "number is given twice"),
    (["inner.text=1", "inner={text: 2}"], "inner is given twice, as 'inner.text=1' and 'inner={text: 2}'; keep one"),
    (["inner={text: 2}", "inner.text=1"], "inner is given twice"), (["free.a.b=1", "free.a=2"], "free.a is given twice")])
def test_a_key_given_twice_is_an_error(overrides, said, capsys):
    with pytest.raises(ConfigError) as error:
        read_values(None, overrides)
    assert said in str(error.value)
    with pytest.raises(SystemExit):
        parse_command_line(Everything, "", overrides)
    assert said in capsys.readouterr().err


def test_neighbours_are_not_twice(tmp_path):
    (tmp_path / "run.yaml").write_text("inner: {text: a, number: 1}\nnumber: 3\n")
    found = load_yaml(tmp_path / "run.yaml", Everything, ["inner.text=b", "inner.number=2", "number=4"])
    assert (found.inner, found.number) == (Inner(text="b", number=2), 4)
    with pytest.raises(SystemExit):
        parse_command_line(Everything, "", ["--config", "a.yaml", "--config", "b.yaml"])


FILES = {
    b"number: 1\ntext: a\nnumber: 2\n": ":3: number is there twice, on lines 1 and 3; keep one",
    b"inner:\n  text: a\n  'text': b\n": ":3: text is there twice, on lines 2 and 3; keep one",
    b"inners: [{text: a, text: b}]\n": ":1: text is there twice, on line 1; keep one",
    "number: 1\n".encode("utf-16"): ":1: not YAML: the file is UTF-16; save it as UTF-8 text",
    "number: 1\n".encode("utf-16-be"): ":1: not YAML",
    "number: 1\n# caf\u00e9\n".encode("latin-1"): ":2: not YAML: byte 0xe9 is not UTF-8",
    "text: \u4f60\u597d\n".encode("gbk"): ":1: not YAML: byte 0xc4 is not UTF-8",
    b"inner:\n\tnumber: 1\n": ":2: not YAML: found character '\\t' that cannot start any token; indent with spaces",
    b"number: 1\n---\nnumber: 2\n": ":2: not YAML: but found another document",
    b"\x00\x01PK": ":1: not YAML", b"- 1\n": "holds a list, expected keys and values", b"words\n": "holds",
    b"text: &a [*a]\n": "values inside values", b"free: " + b"[" * 5000: "values inside values",
    b"text: {[a]: b}\n": ":1: not YAML: found unhashable key", b"text: !!python/name:os.system x\n": ":1: not YAML",
}


@pytest.mark.parametrize("data", FILES)
def test_a_file_that_is_none_is_named_with_its_line(tmp_path, data):
    file = tmp_path / "run.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        load_yaml(file, Everything)
    assert str(error.value).startswith(str(file)) and FILES[data] in str(error.value)


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfnumber: 7\n", b"number: 7\r\ntext: a\r\n", b"number: 7",
                                  b"inner: &x {text: b}\ninners: [{<<: *x, number: 2}, *x]\nnumber: 7\n"])
def test_what_editors_write_is_read(tmp_path, data):
    file = tmp_path / "run.yaml"
    file.write_bytes(data)
    found = load_yaml(file, Everything)
    assert found.number == 7
    assert found.inners in ((), (Inner(text="b", number=2), Inner(text="b")))
