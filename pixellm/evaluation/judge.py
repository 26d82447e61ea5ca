"""Judges of an answer's words, step 3 of MUSE's evaluation: a score from 1 to 10 for each predicted mask that was matched.

Two judges with one interface, and reports name which one spoke. `EndpointJudge` asks a language model, as the paper does. `OfflineJudge`
compares words and is no stand-in for it: it knows no synonyms, does not look at the question, and cannot tell whether an answer reasons.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Protocol

from pydantic import ValidationError

from pixellm.curation.budget import Budget, in_process
from pixellm.curation.chat import ChatRequest
from pixellm.curation.client import ChatClient
from pixellm.curation.config import EndpointConfig
from pixellm.errors import ServerError
from pixellm.evaluation.metrics import QuestionScore
from pixellm.evaluation.protocols import BEST_SCORE, Judgement
from pixellm.inference.batch import Record
from pixellm.model.processing_pixellm import parse_template
from pixellm.settings import StrictModel

PROMPT = "judge.1"
WORST_SCORE = 1.0
_STOP_WORDS = frozenset({"a", "an", "the", "this", "that", "these", "those", "and", "or", "of", "in", "on", "at", "to", "with", "is", "are",
                         "it", "its", "his", "her", "their", "your"})


@dataclass(frozen=True)
class JudgeItem:
    """One answer with at least one match. `text`: the answer, and after the words of each matched mask the true description in square
    brackets (step 2). `pairs`: the words of each match and its true description, in the order of the brackets."""

    question: str
    expected: str
    text: str
    pairs: tuple[tuple[str, str], ...]


class Judge(Protocol):
    """`name` goes into reports."""

    name: str

    def judge(self, items: Sequence[JudgeItem]) -> list[tuple[float, ...] | None]:
        """A score of 1 to 10 for each pair of each item; None for an item that could not be judged."""
        ...


class OfflineJudge:
    """1 + 9 x F1 of the words that both say (articles and the like left out, plural s taken off); the same for the same words, always."""

    name = "offline, shared words (no language model)"

    def judge(self, items: Sequence[JudgeItem]) -> list[tuple[float, ...] | None]:
        """See Judge."""
        return [tuple(WORST_SCORE + (BEST_SCORE - WORST_SCORE) * word_f1(said, true) for said, true in item.pairs) for item in items]


class _Scores(StrictModel):
    scores: list[int]


class EndpointJudge:
    """A language model behind OpenAI's chat completions. Answers are cached, so the same answers are judged once.

    An answer without one whole number from 1 to 10 for each match is sent back once; after that the question is not judged.
    """

    def __init__(self, endpoint: EndpointConfig, cache: str):
        self._endpoint, self._cache = endpoint, cache
        self.name = f"{endpoint.model}, prompt {PROMPT}"
        self._prompt = files("pixellm.evaluation.prompts").joinpath(f"{PROMPT}.txt").read_text(encoding="utf-8")

    def judge(self, items: Sequence[JudgeItem]) -> list[tuple[float, ...] | None]:
        """See Judge. Raises ServerError `endpoint_refused`, StorageError, ConfigError."""
        return asyncio.run(self._judge(items))

    async def _judge(self, items: Sequence[JudgeItem]) -> list[tuple[float, ...] | None]:
        budget = in_process(Budget({"judge": self._endpoint}))
        async with ChatClient(self._endpoint, "judge", budget, self._cache) as client:
            return list(await asyncio.gather(*(self._judge_one(client, item) for item in items)))

    async def _judge_one(self, client: ChatClient, item: JudgeItem) -> tuple[float, ...] | None:
        prompt = self._prompt
        for key, value in (("num_scores", str(len(item.pairs))), ("question", item.question), ("expected", item.expected),
                           ("text", item.text)):
            prompt = prompt.replace("{" + key + "}", value)
        turns: tuple[str, ...] = (prompt,)
        for _ in range(2):
            try:
                completion = await client.complete(ChatRequest("judge", PROMPT, turns, answer_type=_Scores))
            except ServerError as error:
                if error.code == "endpoint_refused":
                    raise
                return None
            scores = _read_scores(completion.content)
            if scores is not None and len(scores) == len(item.pairs) and all(WORST_SCORE <= each <= BEST_SCORE for each in scores):
                return tuple(map(float, scores))
            turns = (*turns, completion.content, f'That is not {{"scores": [...]}} with {len(item.pairs)} whole numbers from 1 to 10. '
                                                 "Answer with JSON only.")
        return None


def judge_answers(judge: Judge, answers: Sequence[tuple[Record, QuestionScore]]) -> list[Judgement | None]:
    """For each answer a score of each row: the judge's where masks were matched, 0 for leftovers, 10 for a right "there is nothing".

    None where the judge gave none; such questions are in no judged figure.
    """
    places = [place for place, (_, score) in enumerate(answers) if score.matches]
    judged = dict(zip(places, judge.judge([to_item(*answers[place]) for place in places]), strict=True))
    return [_to_judgement(score, judged.get(place, ())) for place, (_, score) in enumerate(answers)]


def to_item(record: Record, score: QuestionScore) -> JudgeItem:
    """What a judge is told of an answer that has a match."""
    expected, true_spans = parse_template(record["true_answer"])
    said = {predicted: _cut(record["text"], record["spans"][predicted]) for predicted, _ in score.matches}
    texts = {predicted: (said[predicted], _cut(expected, true_spans[true]) or record["true_categories"][true])
             for predicted, true in score.matches}
    text = record["text"]
    for predicted in sorted(texts, reverse=True):  # masks follow the text
        stop = record["spans"][predicted][1]
        text = f"{text[:stop]} [{texts[predicted][1]}]{text[stop:]}"
    return JudgeItem(record["question"], expected, text, tuple(texts[predicted] for predicted in sorted(texts)))


def word_f1(one: str, other: str) -> float:
    """Of the words that two phrases share, in [0, 1]."""
    words = [Counter(_words(phrase)) for phrase in (one, other)]
    shared = (words[0] & words[1]).total()
    return 2 * shared / (words[0].total() + words[1].total()) if shared else 0.0


def _to_judgement(score: QuestionScore, judged: tuple[float, ...] | None) -> Judgement | None:
    if judged is None:
        return None
    if not score.num_true and not score.num_predicted:
        return (BEST_SCORE,)
    return (*judged, *([0.0] * (len(score.ious) - len(judged))))


def _cut(text: str, span: Sequence[int]) -> str:
    return text[span[0]:span[1]]


def _words(phrase: str) -> list[str]:
    return [word.removesuffix("s") for word in re.findall(r"\w+", phrase.casefold()) if word not in _STOP_WORDS]


def _read_scores(content: str) -> list[int] | None:
    try:
        return _Scores.model_validate_json(content).scores
    except ValidationError:
        return None
