"""Chat messages -> a photo, the question that is to be answered, and what was said before."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pixellm.inference.config import Turn
from serve.chat_schemas import ChatMessage, ImageUrl
from serve.config import AppConfig
from serve.limits import checked_question
from serve.problems import ApiError

SEG = "{seg}"


@dataclass(frozen=True)
class Conversation:
    """`image` as the messages give it: base64 or a URL."""

    image: str
    question: str
    history: tuple[Turn, ...]


def read_conversation(messages: Sequence[ChatMessage], config: AppConfig) -> Conversation:
    """The messages of one role in a row are one turn; system messages go before the first question, which they precede anyway.

    Raises ApiError: `messages_invalid` when questions and answers do not alternate or a question is not last, `image_missing`,
    `image_too_many` (the same photo in several messages is one), `question_missing`, `question_too_long`, `messages_too_many`.
    """
    images: dict[str, None] = {}
    system = [_text(message, images) for message in messages if message.role in ("system", "developer")]
    said = [message for message in messages if message.role in ("user", "assistant")]
    turns = [(role, "\n".join(_text(message, images) for message in group)) for role, group in groupby(said, lambda message: message.role)]
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user":
        raise ApiError(422, "messages_invalid", "A conversation begins and ends with a message of the user.", "messages")
    if len(turns) > 2 * config.max_questions:
        raise ApiError(422, "messages_too_many", f"At most {config.max_questions} questions in a conversation are allowed.", "messages")
    if len(images) != 1:
        code, found = ("image_missing", "no photo") if not images else ("image_too_many", f"{len(images)} different photos")
        detail = f"The messages have {found}, expected one: a part image_url with a data: URL in a message of the user."
        raise ApiError(422, code, detail, "messages")
    questions = [checked_question(text, config, "messages") for _, text in turns[::2]]
    if system:
        questions[0] = checked_question("\n".join([*system, questions[0]]), config, "messages")
    history = tuple(map(Turn, questions, (text for _, text in turns[1::2])))
    max_answer_chars = 32 * config.max_new_tokens  # more than an answer from here ever has
    if any(len(turn.answer) > max_answer_chars for turn in history):
        raise ApiError(422, "messages_invalid", f"An earlier answer has more than {max_answer_chars} characters.", "messages")
    return Conversation(next(iter(images)), questions[-1], history)


def _text(message: ChatMessage, images: dict[str, None]) -> str:
    """The text of a message, an answer's with `{seg}` after each phrase; its photos go to `images`."""
    texts: list[str] = []
    for part in [] if message.content is None or isinstance(message.content, str) else message.content:
        if part.type == "text":
            texts.append(part.text or "")
        elif message.role != "user" or part.image_url is None:
            raise ApiError(422, "messages_invalid", "A photo is the image_url of a part of a user's message.", "messages")
        else:
            images[part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url] = None
    text = message.content if isinstance(message.content, str) else "\n".join(texts)
    if message.role != "assistant":
        return text
    pieces, copied = [], 0
    for start, end in sorted((mask.span for mask in message.masks or []), key=lambda span: span[1]):
        if not 0 <= start <= end <= len(text):
            detail = f"A mask has the span [{start}, {end}] in a text of {len(text)} characters."
            raise ApiError(422, "messages_invalid", detail, "messages")
        pieces += [text[copied:end], f" {SEG}" if end else SEG]
        copied = end
    return "".join([*pieces, text[copied:]])
