"""Model directories with a file that is damaged: each is named by its file, and none loads as something else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixellm.errors import ModelError
from pixellm.model.load import load_model_dir
from pixellm.model.presets import pretrained_dir
from pixellm.model.side_files import describe_damage, read_json_object
from pixellm.model.tensor_plan import INDEX_NAME, list_tensors

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n"
DAMAGE = {"lfs": LFS, "404": b"404: Not Found", "entry": b"Entry not found", "html": b"<!DOCTYPE html>\n<html><body>Log in</body></html>",
          "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "empty": b"", "blank": b" \r\n", "bom": b"\xef\xbb\xbf",
          "zeros": bytes(5000)}
NO_JSON = {"list": b"[1, 2]", "text": b'"text"', "null": b"null", "cut": b'{"a": {"b": ', "latin": '{"a": "caf\u00e9"}'.encode("latin-1"),
           "utf16": '{"a": 1}'.encode("utf-16"), "deep": b"[" * 100_000}


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "model"
    shutil.copytree(pretrained_dir("tiny"), target)
    return target


def refused(folder, *parts):
    with pytest.raises(ModelError) as error:
        load_model_dir(folder)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_stands_in_place_of_a_file_is_named(folder, kind):
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                 "model.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(DAMAGE[kind])
        refused(folder, str(folder / name), " is ", "fetch it again")
        (folder / name).write_bytes(kept)
    for name in ("generation_config.json", "special_tokens_map.json", "preprocessor_config.json", "added_tokens.json", "tokenizer.model",
                 "chat_template.json"):
        (folder / name).write_bytes(DAMAGE[kind])
        refused(folder, str(folder / name), " is ", "fetch it again")
        (folder / name).unlink()
    load_model_dir(folder)


@pytest.mark.parametrize("kind", NO_JSON)
def test_json_that_is_none_is_named(folder, kind):
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        kept = (folder / name).read_bytes() if (folder / name).is_file() else None
        (folder / name).write_bytes(NO_JSON[kind])
        refused(folder, str(folder / name), "fetch it again")
        if kept is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(kept)


def test_a_byte_order_mark_is_read_here_and_named_where_a_library_reads(folder):
    file = folder / "config.json"
    values = json.loads(file.read_text())
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_json_object(file) == values
    refused(folder, str(file), "byte order mark")


@pytest.mark.parametrize(("name", "values"), [
    ("config.json", {}), ("config.json", {"model_type": "llama"}), ("config.json", {"model_type": "pixellm"}),
    ("config.json", {"model_type": "pixellm", "text_config": 5}), ("config.json", {"model_type": "pixellm", "vision_config": {}}),
    ("tokenizer.json", {}), ("tokenizer.json", {"model": {"type": "BPE", "vocab": []}}),
    ("processor_config.json", {"image_processor": []})])
def test_json_of_another_kind_is_an_error_of_this_folder(folder, name, values):
    (folder / name).write_text(json.dumps(values))
    refused(folder, str(folder))


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_file_that_is_not_there_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, "safetensors" if name.startswith("model") else f"has no {name}")
    refused(folder / "none", "is not a folder")


def test_a_pickle_is_never_opened(folder, tmp_path):
    class Opened:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Opened()}, folder / "pytorch_model.bin")
    refused(folder, "only pytorch_model.bin: a pickle can run code and is never opened")
    assert not (tmp_path / "ran").exists()


def test_a_weight_that_is_missing_or_cut_or_of_another_shape_is_never_drawn(folder):
    file = folder / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    file.write_bytes(whole[:-1])
    refused(folder, str(file), "is not whole", "fetch it again")
    name = next(name for name in tensors if "q_proj" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    refused(folder, "1 missing: ", name)
    save_file(tensors | {"surprise": torch.zeros(2)}, file, metadata={"format": "pt"})
    refused(folder, "1 not known: surprise")
    save_file(tensors | {name: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    refused(folder, f"1 of another shape: {name} is [3, 3], expected [128, 128]")


def test_a_shard_that_is_missing_is_named_as_a_file(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:20], "model-3.safetensors": names[20:]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    (folder / "._model-1.safetensors").write_bytes(b"\0\5\x16\7 of a Mac")
    load_model_dir(folder)
    (folder / "model-2.safetensors").unlink()
    refused(folder, f"{folder / 'model-2.safetensors'} is missing", INDEX_NAME, "fetch it again")
    (folder / "model-3.safetensors").unlink()
    refused(folder, "one of 2 files")
    for shards, said in (({"a": "../x.safetensors"}, "not the name of a file beside it"), ({"a": "/etc/x"}, "not the name"),
                         ({}, "no weight_map"), (["a"], "no weight_map"), ({"a": 5}, "no weight_map")):
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": shards}))
        refused(folder, str(folder / INDEX_NAME), said)


PICKLES = {
    "training": ({"model": {"a": torch.zeros(1)}, "optimizer": {}, "epoch": 3}, "holds model, optimizer, epoch that are not tensors"),
    "lightning": ({"state_dict": {"a": torch.zeros(1)}}, "holds state_dict that are not tensors"),
    "list": ([torch.zeros(1)], "holds a list"), "tensor": (torch.zeros(1), "holds a Tensor"),
    "number keys": ({0: torch.zeros(1)}, "holds 0"),
    "module": (torch.nn.Linear(1, 1), "not a whole file of tensors")}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_of_something_else_is_named(tmp_path, kind):
    content, said = PICKLES[kind]
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError) as error:
        list_tensors(tmp_path)
    assert said in str(error.value) and str(tmp_path / "pytorch_model.bin") in str(error.value)


@pytest.mark.parametrize("data", [*DAMAGE.values(), b"\x80\x04\x95", b"PK\x03\x04 cut", b"\x80\x02}q\x00(X\x01", b"words",
                                  bytes(range(256))])
def test_a_bin_file_that_is_none_is_named(tmp_path, data):
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin .*fetch it again"):
        list_tensors(tmp_path)


def test_a_bin_index_names_what_is_missing(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model-1.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {
        "a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}))
    with pytest.raises(ModelError, match=r"pytorch_model-2\.bin is missing"):
        list_tensors(tmp_path)


@pytest.mark.parametrize("data", [b"{}", b'{"note": "<html>"}', b"{% if a %}<image>{% endif %}", b"{{ content }}", b"\x0a\x05<unk>", b"404",
                                  b"<s>{{ a }}", b"<image>\n{{ a }}"])
def test_whole_files_are_not_suspected(data):
    assert describe_damage(data) is None
