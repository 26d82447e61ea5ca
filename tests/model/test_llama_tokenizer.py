"""The released slow tokenizer's ids, from its own files, by another way of counting."""

import json

import pytest

from pixellm.errors import ModelError
from pixellm.model.llama_tokenizer import load_llama_tokenizer
from pixellm.model.presets import build_image_processor, codebook_tokens, tiny_config
from pixellm.model.processing_pixellm import PixelLMProcessor
from tests.model.llama_files import released_ids, write_tokenizer

CODEBOOK = codebook_tokens(6)
GROUP = "".join(CODEBOOK)
SYSTEM = ("A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
          "answers to the human's questions. ")
SYSTEM_LLAMA_2 = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
                  "and assist the user with a variety of tasks using natural language.")


def processor_of(folder, conversation="llava_v1", add_image_bounds=True) -> PixelLMProcessor:
    tokenizer = load_llama_tokenizer(folder, conversation, CODEBOOK, add_image_bounds)
    return PixelLMProcessor(build_image_processor(tiny_config()), tokenizer, codebook_tokens=CODEBOOK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The order of the released run: codebook first, then the photo's bounds."""
    folder = tmp_path_factory.mktemp("llama")
    pieces = write_tokenizer(folder)
    return folder, pieces, {token: len(pieces) + i for i, token in enumerate([*CODEBOOK, "<im_start>", "<im_end>"])}


@pytest.mark.parametrize("text", [
    "the red circle", " the  red circle ", "the red circle [SEG0][SEG1] and the ring [SEG2].", f"<s>the ring {GROUP}.</s>",
    "USER: <im_start><im_end>\n the red ring? ASSISTANT:", "\n", "ünïcode ☃ 日本", "the ring . </s>", f"{GROUP} {GROUP}", ""])
def test_ids_are_the_slow_tokenizers(folder, text):
    path, pieces, added = folder
    tokenizer = load_llama_tokenizer(path, "llava_v1", CODEBOOK, add_image_bounds=True)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == released_ids(text, pieces, added)


@pytest.mark.parametrize(("conversation", "before", "after", "end"), [
    ("llava_v1", f"{SYSTEM}USER: <im_start>", "<im_end>\n{question} ASSISTANT:", " {answer}</s>"),
    ("llava_llama_2", f"[INST] <<SYS>>\n{SYSTEM_LLAMA_2}\n<</SYS>>\n\n<im_start>", "<im_end>\n{question} [/INST]", " {answer} </s>")])
def test_prompts_and_conversations_are_the_released_ones(folder, conversation, before, after, end):
    """The released code tokenizes what stands before and after the photo apart, with one <s> in front."""
    path, pieces, added = folder
    processor = processor_of(path, conversation)
    question, answer = "where is the red circle?", "the red circle {seg} and the ring {seg}."
    photo = [max(added.values()) + 1] * processor.num_image_tokens
    rest = (after + end).replace("{question}", question).replace("{answer}", answer.replace("{seg}", GROUP))
    prompt = [1, *released_ids(before, pieces, added), *photo, *released_ids(after.replace("{question}", question), pieces, added)]
    whole = [1, *released_ids(before, pieces, added), *photo, *released_ids(rest, pieces, added)]
    assert processor.prompt_ids(question) == prompt
    ids, labels = processor.conversation_ids(question, answer)
    assert ids == whole and labels == [-100] * len(prompt) + whole[len(prompt):]
    assert processor.prompt_ids("why?", [(question, answer)])[:len(whole)] == whole
    dot = processor.tokenizer.convert_tokens_to_ids("▁.")
    assert ids.count(dot) == 1, "a full stop after a group has a space before it"


@pytest.mark.parametrize("conversation", ["llava_v1", "llava_llama_2"])
@pytest.mark.parametrize("answer", [
    "the red circle {seg} and the ring {seg}.", "{seg}.", "there is none.", "the ring {seg}, the circle {seg}!"])
def test_parsing_the_trained_answer_gives_the_answer_back(folder, conversation, answer):
    processor = processor_of(folder[0], conversation)
    _, labels = processor.conversation_ids("where?", answer)
    parsed = processor.parse_answer([label for label in labels if label >= 0])
    assert parsed.template == answer and len(parsed.spans) == answer.count("{seg}")
    assert [parsed.text[start:end] for start, end in parsed.spans][:1] in ([], [""], ["the red circle"], ["the ring"])


def test_json_and_model_files_give_the_same_tokenizer(folder, tmp_path):
    path, _, _ = folder
    first = load_llama_tokenizer(path, "llava_v1", CODEBOOK, add_image_bounds=True)
    first.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    again = load_llama_tokenizer(tmp_path, "llava_v1", CODEBOOK, add_image_bounds=True)
    assert again.get_vocab() == first.get_vocab()
    text = f"the red circle {GROUP}. ünïcode </s>"
    assert again(text)["input_ids"] == first(text)["input_ids"]


def test_added_tokens_keep_their_ids_and_without_bounds_there_are_none(tmp_path):
    pieces = write_tokenizer(tmp_path, {"<im_patch>": 10_000})
    with pytest.raises(ModelError, match="do not follow on its"):
        processor_of(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {
        "0": {"content": "<unk>"}, str(len(pieces)): {"content": "<image>"}, str(len(pieces) + 1): {"content": "<pad>"}}}))
    processor = processor_of(tmp_path, add_image_bounds=False)
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>", *CODEBOOK]) == list(range(len(pieces), len(pieces) + 8))
    assert "<im_start>" not in tokenizer.get_vocab() and "<im_start>" not in tokenizer.chat_template
    assert processor.prompt_ids("where?").count(len(pieces)) == processor.num_image_tokens


def test_a_folder_without_a_llama_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_llama_tokenizer(tmp_path, "llava_v1", CODEBOOK, True)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}, "added_tokens": []}))
    with pytest.raises(ModelError, match="not a LLaMA tokenizer"):
        load_llama_tokenizer(tmp_path, "llava_v1", CODEBOOK, True)
