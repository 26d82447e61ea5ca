"""Reads a pickle that holds plain data, and refuses every other: an untrusted file can run nothing here.

A pickle is a program for a small machine. Here that machine knows only the instructions that make lists, dicts, texts and numbers, and
has no way to look up a class or to call one. Instructions are described in the standard library's `pickletools`.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, ClassVar

from pixellm.errors import ConfigError

_PLAIN = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP,
    pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT,
    pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING,
    pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8,
    pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS,
)
_LOOK_UPS = (pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.INST)  # these end in `find_class`, which says what was asked for
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error)


def load_plain_pickle(data: bytes, where: str) -> Any:
    """Lists, dicts, texts, numbers, booleans and None of a pickle of any protocol; tuples come as lists.

    Byte strings of Python 2 become text: UTF-8, else Latin-1. Raises ConfigError that says what else the file asks for.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _BROKEN as error:
        detail = "it ends too early" if isinstance(error, EOFError) else str(error) or type(error).__name__
        raise ConfigError(f"{where} is not a pickle of plain data: {detail}; nothing of it was run. "
                          "Take the file from its publisher, or give the same list as JSON") from None


class _Instructions(dict[int, Callable[..., None]]):
    def __missing__(self, code: int) -> Callable[..., None]:
        name = next((known.name for known in pickletools.opcodes if known.code == chr(code)), None)
        raise pickle.UnpicklingError(f"its instruction {name} makes objects" if name else f"{code} is no instruction")


class _PlainUnpickler(pickle._Unpickler):
    """Made of the one in Python: in the one in C the instructions are fixed, and one index can claim all memory."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = _Instructions(
        {code[0]: pickle._Unpickler.dispatch[code[0]] for code in (*_PLAIN, *_LOOK_UPS)})

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")

    def _decode_string(self, value: bytes) -> str:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")

    # A deeply nested tuple as a key of a dict would overflow the stack when it is hashed; a list cannot be a key.
    def _load_items(self, count: int) -> None:
        self.stack[-count:] = [self.stack[-count:]]

    dispatch[pickle.TUPLE[0]] = pickle._Unpickler.dispatch[pickle.LIST[0]]
    dispatch[pickle.EMPTY_TUPLE[0]] = pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]]
    dispatch[pickle.TUPLE1[0]] = lambda self: self._load_items(1)
    dispatch[pickle.TUPLE2[0]] = lambda self: self._load_items(2)
    dispatch[pickle.TUPLE3[0]] = lambda self: self._load_items(3)
