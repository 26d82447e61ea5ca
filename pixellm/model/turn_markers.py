"""Markers that a person's text must not hold: the words by which a chat template and its tokenizer tell turns, photos and groups apart.

Many tokenizers have markers that are plain text (`USER:`, `[INST]`, `<|im_start|>` of a fine-tune that added no token for it), so the
list of special tokens does not know them. They are read off the template: what it writes between one text and the next.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

TEXTS = ("qmarkera", "amarkerb", "qmarkerc")  # a question, its answer and the next question, which no template changes
BRACKETS = re.compile(r"<<?/?[|\w][^<>\s]*>>?|\[/?[A-Z_]+\]")
MIN_LETTERS = 2


def find_markers(render: Callable[[list[dict[str, str]]], str], added_tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern of every marker. `render` writes turns (`role`, `content`) by the template; `added_tokens` are the tokenizer's.

    A word of the template that has only letters, as of a system's sentence, is none: questions may hold it.
    """
    question, answer, later = TEXTS
    rendered = render([{"role": "user", "content": question}, {"role": "assistant", "content": answer}, {"role": "user", "content": later}])
    before, _, rest = rendered.partition(question)
    to_answer, _, rest = rest.partition(answer)
    to_later, _, end = rest.partition(later)
    words = {token.strip() for token in added_tokens} | set(BRACKETS.findall(before))
    for between in (to_answer, to_later, end):
        words.update(BRACKETS.findall(between))
        words.update(re.sub("|".join(map(re.escape, filter(_is_marker, words))), " ", between).split())
    return re.compile("|".join(_to_pattern(word) for word in sorted(filter(_is_marker, words), key=len, reverse=True)) or r"(?!)")


def without_markers(text: str, markers: re.Pattern[str]) -> str:
    """`text` with a space for each marker, also for one that shows only when the tokenizer normalises the text (`＜/s＞`)."""
    text = markers.sub(" ", text)
    normal = unicodedata.normalize("NFKC", text)
    return markers.sub(" ", normal) if markers.search(normal) else text


def _is_marker(word: str) -> bool:
    return len(word) >= MIN_LETTERS and not word.isalnum()


def _to_pattern(word: str) -> str:
    """Not at the end of another word: `A:` is a marker, and `DNA:` is not."""
    return (r"(?<!\w)" if word[0].isalnum() else "") + re.escape(word)
