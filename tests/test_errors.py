"""pixellm/errors.py: every error survives the way between Ray's processes."""

import importlib
import inspect
import pickle

import pytest

from pixellm import errors
from pixellm.errors import PixelLMError
from tests.test_imports import FILES


def error_classes() -> list[type[PixelLMError]]:
    """All leaves, also those that a module may have added to the tree."""
    for module, file in FILES.items():
        if "Error)" in file.read_text() and module.startswith("pixellm"):
            importlib.import_module(module)
    found, waiting = [PixelLMError], [PixelLMError]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += below
        waiting += below
    return found


def build(error_class: type[PixelLMError]) -> PixelLMError:
    parameters = inspect.signature(error_class.__init__).parameters.values()
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    return error_class(*(f"the {name}" for name in named)) if named else error_class("what is wrong")


@pytest.mark.parametrize("error_class", error_classes(), ids=lambda error_class: error_class.__name__)
def test_error_survives_pickling(error_class):
    error = build(error_class)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


def test_one_tree_with_python_s_own_kinds():
    assert issubclass(errors.ConfigError, ValueError) and issubclass(errors.StorageError, OSError)
    leaves = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert all(issubclass(leaf, PixelLMError) for leaf in leaves)


def test_texts_are_for_people():
    assert str(errors.InputError("photo_unreadable", "the upload is not a photo")) == "the upload is not a photo"
    assert str(errors.RowError("empty_mask", "region 3")) == "empty_mask: region 3"
    assert errors.InputError("photo_unreadable", "x").code == "photo_unreadable"
