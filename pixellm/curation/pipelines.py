"""One photo to its questions, by either pipeline of the paper: the requests, the check of what comes back, and one round of repair.

v1: a vision model writes a caption, a language model writes questions from it and the list of instances (`QUESTIONS["v1"]`). v2: a vision
model sees the photo and the list, chooses instances, and writes questions and answers in one go.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pixellm.curation.chat import ChatRequest, Completion, Picture
from pixellm.curation.client import ChatClient
from pixellm.curation.config import CurateConfig
from pixellm.curation.prompts import CAPTION, QUESTIONS, REPAIR, load_prompt
from pixellm.curation.proposals import MIN_TARGETS, Proposal, Proposals, check_proposal, parse_proposals
from pixellm.data.schema import Row
from pixellm.errors import RowError


@dataclass
class Curation:
    """What came of a photo: questions with the answer of the model that each was in, rejected ones as records, and all answers used."""

    accepted: list[tuple[Proposal, Completion]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)


def list_instances(row: Row, max_listed: int) -> list[int]:
    """Indices of the regions that a model is told of: the largest, without those to be ignored."""
    usable = [index for index, region in enumerate(row["regions"]) if not region["ignore"]]
    largest = sorted(usable, key=lambda index: row["regions"][index]["area"], reverse=True)[:max_listed]
    return sorted(largest)


def caption_request(row: Row, config: CurateConfig) -> ChatRequest:
    """The first of v1."""
    return ChatRequest("caption", CAPTION, (load_prompt(CAPTION),), Picture(row["image"], config.photo_side))


def question_request(row: Row, listed: list[int], config: CurateConfig, caption: str = "") -> ChatRequest:
    """v1: from the caption; v2: from the photo. Boxes are those of the photo as it is sent."""
    scale = min(1.0, config.photo_side / max(row["height"], row["width"]))
    objects = []
    for index in listed:
        region = row["regions"][index]
        left, top, width, height = region["box_xywh"]
        box = [round(side * scale) for side in (left, top, left + width, top + height)]
        objects.append({"id": index, "name": region["category"], "box": box})
    prompt = QUESTIONS[config.pipeline]
    text = load_prompt(prompt, width=round(row["width"] * scale), height=round(row["height"] * scale),
                       objects=json.dumps(objects, ensure_ascii=False), num_questions=config.questions_per_photo, caption=caption)
    picture = Picture(row["image"], config.photo_side) if config.pipeline == "v2" else None
    return ChatRequest("questions", prompt, (text,), picture, Proposals)


def repair_request(first: ChatRequest, answer: str, problems: list[str], num_questions: int) -> ChatRequest:
    """The same conversation, told what was wrong."""
    text = load_prompt(REPAIR, num_questions=num_questions, problems="\n".join(f"- {problem}" for problem in problems))
    return ChatRequest("repair", REPAIR, (*first.turns, answer, text), first.picture, Proposals)


class PhotoCurator:
    """Both pipelines; `clients` are those of `config.endpoints()`."""

    def __init__(self, config: CurateConfig, clients: Mapping[str, ChatClient]):
        self._config, self._clients = config, clients

    async def curate(self, row: Row) -> Curation:
        """Raises RowError `nothing_to_ask` for a photo with fewer than two instances, and what `ChatClient.complete` does."""
        listed = list_instances(row, self._config.max_listed)
        if len(listed) < MIN_TARGETS:
            raise RowError("nothing_to_ask", f"{len(listed)} instances, a question needs {MIN_TARGETS}")
        curation, caption = Curation(), ""
        if self._config.pipeline == "v1":
            curation.completions.append(await self._complete(caption_request(row, self._config)))
            caption = curation.completions[0].content.strip()
        request = question_request(row, listed, self._config, caption)
        completion = await self._complete(request)
        wanted = self._config.questions_per_photo
        problems = self._sort(curation, completion, row, listed, wanted)
        if problems and len(curation.accepted) < wanted:
            again = repair_request(request, completion.content, problems, wanted - len(curation.accepted))
            self._sort(curation, await self._complete(again), row, listed, wanted)
        return curation

    async def _complete(self, request: ChatRequest) -> Completion:
        return await self._clients[self._config.endpoint_of(request.stage)].complete(request)

    def _sort(self, curation: Curation, completion: Completion, row: Row, listed: list[int], wanted: int) -> list[str]:
        """Take the good ones of an answer, at most `wanted` in all. Returns what is wrong with the others, as the model is told it."""
        curation.completions.append(completion)
        problems = []

        def reject(error: RowError, what: Mapping[str, Any]) -> None:
            identity = {name: row[name] for name in ("image_id", "source", "split")}  # type: ignore[literal-required]
            curation.rejected.append({**identity, "reason": error.reason, "detail": error.detail, **what, **provenance(completion)})

        try:
            proposals = parse_proposals(completion.content)
        except RowError as error:
            reject(error, {"content": completion.content})
            return [error.detail]
        for proposal in proposals:
            try:
                if len(curation.accepted) == wanted:
                    raise RowError("surplus", f"{wanted} questions are enough")
                earlier = [each for each, _ in curation.accepted]
                check_proposal(proposal, row["regions"], listed, earlier, self._config.max_similarity)
                curation.accepted.append((proposal, completion))
            except RowError as error:
                reject(error, proposal.model_dump())
                problems.append(f"{proposal.question!r}: {error.detail}")
        return problems


def provenance(completion: Completion) -> dict[str, str]:
    """Where a question comes from: who wrote it, after which prompt, when, and the key of the answer in the cache."""
    return completion.model_dump(include={"stage", "prompt", "model", "served_by", "created", "request"})
