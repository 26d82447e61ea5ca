"""A small SentencePiece model as LLaMA's folders hold one, and what the released slow tokenizer makes of a text with it."""

import json
import re
from itertools import pairwise
from pathlib import Path

from transformers.convert_slow_tokenizer import import_protobuf

WORDS = ("▁the", "▁USER", "▁ASSISTANT", "▁red", "▁circle", "▁and", "▁ring", "▁A", "▁chat", "▁human", "assist", "▁INST", "▁.", "▁?",
         "▁▁")
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def write_tokenizer(folder: Path, added: dict[str, int] | None = None) -> list[str]:
    """Writes `tokenizer.model` (BPE with byte fallback) and what was added; returns its pieces, in the order of their ids."""
    prefixes = dict.fromkeys(word[:end] for word in WORDS for end in range(2, len(word) + 1))
    letters = dict.fromkeys("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?!'[]{}<>/")
    model = import_protobuf().ModelProto()
    model.trainer_spec.model_type = 2
    for piece, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), *((f"<0x{i:02X}>", BYTE) for i in range(256)),
                        *((each, NORMAL) for each in prefixes), *((each, NORMAL) for each in letters)):
        model.pieces.add(piece=piece, type=kind, score=-float(len(model.pieces)) if kind == NORMAL else 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return [piece.piece for piece in model.pieces]


def released_ids(text: str, pieces: list[str], added: dict[str, int]) -> list[int]:
    """The slow tokenizer of transformers 4.31: cut at added tokens, strip beside them, SentencePiece for each piece of text."""
    control = {"<unk>": 0, "<s>": 1, "</s>": 2}
    parts = re.split("(" + "|".join(map(re.escape, [*added, *control])) + ")", text)
    ids: list[int] = []
    for place, part in enumerate(parts):
        if part in added or part in control:
            ids.append((added | control)[part])
            continue
        if place and parts[place - 1] in added:
            part = part.lstrip()
        if place + 1 < len(parts) and parts[place + 1] in added:
            part = part.rstrip()
        ids += _sentencepiece(part, pieces) if part else []
    return ids


def _sentencepiece(text: str, pieces: list[str]) -> list[int]:
    """BPE by score: of all pairs of neighbours, the one that makes the best piece is joined first; the leftmost of equals."""
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    symbols = list(("▁" + text).replace(" ", "▁"))
    while True:
        joined = [(ids[a + b], place) for place, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
        if not joined:
            break
        _, place = min(joined)  # scores fall with ids
        symbols[place:place + 2] = [symbols[place] + symbols[place + 1]]
    return [id_ for symbol in symbols for id_ in ([ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()])]
