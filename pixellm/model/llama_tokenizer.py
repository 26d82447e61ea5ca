"""The LLaMA tokenizer of a released PixelLM or LLaVA folder -> one that gives the ids which the released slow tokenizer gave.

That one (transformers 4.31, `use_fast=False`) cuts a text at its added tokens, strips white space beside them, and hands each piece to
SentencePiece, which puts a space before it: no id for the newline after <im_end>, and "." after a codebook group becomes "▁.".
"""

import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges

from pixellm.errors import ModelError
from pixellm.model.presets import IMAGE_TOKEN
from pixellm.model.side_files import check_not_damaged, read_json_object

IMAGE_BOUNDS = ("<im_start>", "<im_end>")
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
SPACE = "▁"
BPE = 2  # among SentencePiece's types of models

# The conversations of the released code; a turn's `<image>` stands between its bounds.
CHAT_TEMPLATES = {
    "llava_v1": (
        "{{ bos_token }}A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the human's questions. {% for turn in messages %}{% if turn.role == 'user' %}USER: "
        "{{ turn.content | replace('<image>', '<im_start><image><im_end>') }} ASSISTANT:"
        "{% else %} {{ turn.content }}{{ eos_token }}{% endif %}{% endfor %}"),
    "llava_llama_2": (
        "{% for turn in messages %}{% if turn.role == 'user' %}{{ bos_token }}[INST] {% if loop.first %}<<SYS>>\nYou are a helpful "
        "language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a "
        "variety of tasks using natural language.\n<</SYS>>\n\n{% endif %}"
        "{{ turn.content | replace('<image>', '<im_start><image><im_end>') }} [/INST]"
        "{% else %} {{ turn.content }} {{ eos_token }}{% endif %}{% endfor %}"),
}
Conversation = Literal["llava_v1", "llava_llama_2"]


@dataclass(frozen=True)
class _Vocabulary:
    """Pieces with their ids, merges in the order of their rank, and what was added behind the pieces, with its ids."""

    pieces: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int] = field(default_factory=dict)


def load_llama_tokenizer(folder: Path, conversation: Conversation, codebook_tokens: list[str],
                         add_image_bounds: bool) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder` (`tokenizer.model` or `tokenizer.json`) with the codebook's tokens, the photo's and a chat template.

    Tokens that are missing are added in the order of the released code: [SEG0] …, then with `add_image_bounds` <im_start> and <im_end>,
    and <image> last. Without the bounds the template leaves them out.
    Raises ModelError when the folder holds no LLaMA tokenizer, or when its added tokens do not follow on its pieces.
    """
    vocabulary = _read_vocabulary(folder)
    missing = [piece for piece in (UNKNOWN, BOS, EOS, "<0x00>", SPACE) if piece not in vocabulary.pieces]
    if missing:
        raise ModelError(f"{folder} holds a tokenizer without {', '.join(missing)}: not LLaMA's; give the folder of the checkpoint's own")
    try:
        model = models.BPE(vocabulary.pieces, vocabulary.merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    except Exception as error:  # the Rust library raises no class of its own
        raise ModelError(f"{folder} holds a tokenizer whose merges and pieces do not fit ({error}); fetch it again") from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    own = {token: AddedToken(token, normalized=False, special=True) for token in (UNKNOWN, BOS, EOS)}
    template = CHAT_TEMPLATES[conversation]
    if not add_image_bounds and not vocabulary.added.keys() >= set(IMAGE_BOUNDS):
        template = template.replace("<im_start><image><im_end>", "<image>")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=own[BOS], eos_token=own[EOS], unk_token=own[UNKNOWN],
                                   pad_token=own[UNKNOWN], chat_template=template)
    names = sorted(vocabulary.added, key=vocabulary.added.__getitem__)
    names += [*codebook_tokens, *(IMAGE_BOUNDS if add_image_bounds else ()), IMAGE_TOKEN]
    fast.add_special_tokens({"additional_special_tokens": [  # `<image>` is repeated: nothing beside it is white space
        AddedToken(name, lstrip=name != IMAGE_TOKEN, rstrip=name != IMAGE_TOKEN, normalized=False, special=True)
        for name in dict.fromkeys(names) if name not in own]})
    moved = {name: id_ for name, id_ in vocabulary.added.items() if fast.convert_tokens_to_ids(name) != id_}
    if moved:
        raise ModelError(f"{folder} gives the added tokens ids that do not follow on its {len(vocabulary.pieces)} pieces: {moved}")
    return fast


def _read_vocabulary(folder: Path) -> _Vocabulary:
    if (folder / "tokenizer.model").is_file():
        model = import_protobuf().ModelProto()
        file = folder / "tokenizer.model"
        data = check_not_damaged(file)
        try:
            model.ParseFromString(data)
        except Exception as error:  # protobuf's DecodeError
            raise ModelError(f"{file} is not whole, or not a SentencePiece model ({error}); fetch it again") from None
        if model.trainer_spec.model_type != BPE:  # which a file that was cut lacks: it is written last
            raise ModelError(f"{file} is not whole, or not a LLaMA tokenizer (SentencePiece's BPE); fetch it again")
        pieces = {piece.piece: id_ for id_, piece in enumerate(model.pieces)}
        merges = generate_merges(pieces, {piece.piece: piece.score for piece in model.pieces})
        return _Vocabulary(pieces, merges, _read_added_tokens(folder))
    if (folder / "tokenizer.json").is_file():
        values = read_json_object(folder / "tokenizer.json")
        try:
            model = values["model"]
            if model.get("type", "BPE") != "BPE" or not model.get("byte_fallback"):
                raise ModelError(f"{folder / 'tokenizer.json'} is not a LLaMA tokenizer (BPE with byte fallback)")
            merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
            return _Vocabulary(dict(model["vocab"]), merges, {each["content"]: each["id"] for each in values["added_tokens"]})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise _no_tokenizer(folder / "tokenizer.json", error) from None
    raise ModelError(f"{folder} holds neither tokenizer.model nor tokenizer.json; give the folder of the checkpoint's LLaMA tokenizer")


def _read_added_tokens(folder: Path) -> dict[str, int]:
    """What stands beside a `tokenizer.model`: added_tokens.json, or the added tokens of tokenizer_config.json."""
    file = folder / "added_tokens.json"
    try:
        if file.is_file():
            return {token: operator.index(id_) for token, id_ in read_json_object(file).items()}
        file = folder / "tokenizer_config.json"
        if file.is_file():
            decoder = read_json_object(file).get("added_tokens_decoder", {})
            return {each["content"]: int(id_) for id_, each in decoder.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise _no_tokenizer(file, error) from None
    return {}


def _no_tokenizer(file: Path, error: Exception) -> ModelError:
    return ModelError(f"{file} does not hold what a LLaMA tokenizer's does ({type(error).__name__}: {error}); fetch it again")
