"""plain_pickle.py: reads plain data of every protocol, and runs nothing else."""

import copyreg
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pixellm.data.sources.plain_pickle import load_plain_pickle
from pixellm.errors import ConfigError

PLAIN = [{"ref_id": 3, "sentences": [{"sent": "the dog – left", "tokens": ["the", "dog"], "raw": ""}], "small": -5, "word": 70000,
          "big": 1 << 80, "box": [0.5, -1e300], "flags": [True, False, None], "empty": [[], {}], 7: "key"}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(protocol: int) -> None:
    assert load_plain_pickle(pickle.dumps(PLAIN, protocol), "x") == PLAIN
    assert load_plain_pickle(pickle.dumps(PLAIN * 300, protocol), "x") == PLAIN * 300  # indices beyond one byte


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tuples_come_as_lists(protocol: int) -> None:
    data = [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,))]
    assert load_plain_pickle(pickle.dumps(data, protocol), "x") == [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, [4]]]


@pytest.mark.parametrize("data", [
    b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsS'old'\np4\nS'caf\\xe9'\np5\nsS'n'\nL12L\nsa.",  # protocol 0
    b"\x80\x02]q\x00}q\x01(U\x04sentU\x05caf\xc3\xa9U\x03oldT\x04\x00\x00\x00caf\xe9U\x01n\x8a\x01\x0cua.",  # protocol 2
])
def test_byte_strings_of_python_2_become_text(data: bytes) -> None:
    assert load_plain_pickle(data, "x") == [{"sent": "café", "old": "café", "n": 12}]


class Reduced:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def malicious(touch: str) -> dict[str, bytes]:
    """Each would run `touch` under `pickle.load` in some way that pickles have."""
    text = touch.encode()
    short = b"\x8c" + bytes([len(text)]) + text  # SHORT_BINUNICODE
    system = b"\x8c\x05posix\x8c\x06system\x93"  # STACK_GLOBAL
    return {
        **{f"reduce_{protocol}": pickle.dumps([Reduced(touch)], protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
        "global_reduce": b"cposix\nsystem\n(S'" + text + b"'\ntR.",
        "stack_global": b"\x80\x04" + system + short + b"\x85R.",
        "inst": b"(S'" + text + b"'\niposix\nsystem\n.",
        "obj": b"(cposix\nsystem\nS'" + text + b"'\no.",
        "newobj": b"\x80\x02cposix\nsystem\n(S'" + text + b"'\nt\x81.",
        "newobj_ex": b"\x80\x04" + system + short + b"\x85}\x92.",
        "build": b"\x80\x02cbuiltins\nset\n)R}(S'__setstate__'\ncposix\nsystem\nubS'" + text + b"'\nb.",
        "eval": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93" + short + b"\x85R.",
        "extension": b"\x80\x02\x82\xf0(S'" + text + b"'\ntR.",
    }


@pytest.mark.parametrize("kind", malicious(""))
def test_a_malicious_pickle_runs_nothing_and_says_what_it_wanted(tmp_path: Path, kind: str) -> None:
    data = malicious(f"touch {tmp_path}/ran")[kind]
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        with pytest.raises(ConfigError) as error:
            load_plain_pickle(data, "refs(unc).p")
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)
    assert not list(tmp_path.iterdir())
    message = str(error.value)
    assert message.startswith("refs(unc).p is not a pickle of plain data") and "nothing of it was run" in message
    wanted = {"extension": "EXT1", "eval": "builtins.eval", "build": "builtins.set"}.get(kind, "posix.system")
    assert wanted in message
    assert pickle.loads(pickle.dumps(error.value)).args == error.value.args


@pytest.mark.parametrize("kind", ["reduce_0", "reduce_2", "reduce_5", "global_reduce", "stack_global", "inst", "obj"])
def test_the_malicious_pickles_do_run_under_the_usual_loader(tmp_path: Path, kind: str) -> None:
    """Else the test above would show nothing."""
    (tmp_path / "data").write_bytes(malicious(f"touch {tmp_path}/ran")[kind])
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(tmp_path / 'data')!r}, 'rb'))"], check=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(("data", "message"), [
    (b"", "ends too early"), (b"\x80\x04", "ends too early"), (b"]q", "index out of range"), (b"X\xff\xff\xff\x7f.", "ends too early"),
    (b"\x8d" + b"\xff" * 7 + b"\x7f.", "ends too early"), (b"\xff", "255 is no instruction"), (b"PK\x03\x04", "PERSID"),
    (b"not a pickle", "110 is no"), (b"a.", "pop from empty"), (b"u.", "pop from empty"), (b"h\x05.", "not found"),
    (b"}]K\x01s.", "unhashable"), (b"K\x01b.", "BUILD"), (b"K\x01)R.", "REDUCE"),
    (b"\x80\x09.", "protocol"), (b"Pname\n.", "PERSID"), (b"\x80\x04\x8f.", "EMPTY_SET"),
    (b"C\x01a.", "SHORT_BINBYTES"), (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "BYTEARRAY8"), (b"L" + b"9" * 5000 + b"L\n.", "digits"),
])
def test_what_is_no_plain_pickle_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plain_pickle(data, "x")


def test_bombs_cost_little() -> None:
    """Ten bytes that make the loader in C claim 64 GB; tuples so deep that hashing one overflows the stack; lists as deep."""
    assert load_plain_pickle(b"]r\xff\xff\xff\xffj\xff\xff\xff\xff.", "x") == []
    with pytest.raises(ConfigError, match="unhashable"):
        load_plain_pickle(b"})" + b"\x85" * 200_000 + b"Ns.", "x")
    deep = load_plain_pickle(b"]" * 200_000 + b"a" * 199_999 + b".", "x")
    assert len(deep) == 1
