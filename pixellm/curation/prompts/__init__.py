"""Prompts as versioned files, NAME.VERSION.txt. What is sent never changes under a name and version: a change is a new file."""

from importlib.resources import files

CAPTION = "caption.1"
QUESTIONS = {"v1": "questions_from_caption.1", "v2": "questions_from_photo.1"}
REPAIR = "repair.1"


def load_prompt(name: str, **values: object) -> str:
    """The text with each `{key}` of `values` replaced; other braces stay as they are."""
    text = files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace("{" + key + "}", str(value))
    return text


def prompts_of(pipeline: str) -> list[str]:
    """All that a pipeline sends."""
    return [*([CAPTION] if pipeline == "v1" else []), QUESTIONS[pipeline], REPAIR]
