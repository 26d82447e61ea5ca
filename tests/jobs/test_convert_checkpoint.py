"""From published folders to a model directory that answers: the released form, both forms of LLaVA, and what is said of wrong ones."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from jobs.convert_checkpoint import main
from pixellm.inference.segmenter import Segmenter
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.conversion import plan_official, resize_position_table
from pixellm.model.presets import codebook_tokens
from pixellm.testing import random_photo
from tests.conftest import ROOT
from tests.model.llama_files import released_ids, write_tokenizer
from tests.parity.check_golden import write_official

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 11, "num_attention_heads": 4, "image_size": 336,
          "patch_size": 14}
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1024}


def run(capsys, *arguments) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def error_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code not in (0, None)
    return capsys.readouterr().err + str(end.value)


@pytest.fixture
def released(shared_dir, tmp_path):
    """A released checkpoint with its tokenizer, by the golden folder's rule, with as many rows as the tokenizer has ids."""
    pieces = write_tokenizer(tmp_path)
    meta = copy.deepcopy(json.loads((shared_dir / "golden" / "a" / "meta.json").read_text()))
    meta["llm"]["vocab_size"] = len(pieces) + 8
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        meta["official_tensor_shapes"][table][0] = len(pieces) + 8
    write_official(meta, tmp_path / "official", tmp_path / "tower")
    (tmp_path / "tokenizer.model").rename(tmp_path / "official" / "tokenizer.model")
    return tmp_path, pieces


def test_a_released_checkpoint_becomes_a_directory_that_answers(released, capsys):
    folder, pieces = released
    out = folder / "ours"
    printed = run(capsys, f"official={folder / 'official'}", f"vision_tower={folder / 'tower'}", f"out={out}")
    assert "left out" in printed and "point prompts" in printed
    processor = PixelLMProcessor.from_pretrained(out)
    added = {token: len(pieces) + i for i, token in enumerate([*codebook_tokens(6), "<im_start>", "<im_end>"])}
    prompt = processor.prompt_ids("where is the ring?")
    assert prompt[0] == 1 and prompt.count(len(pieces) + 8) == 256 and added["<im_start>"] in prompt
    tail = released_ids("<im_end>\nwhere is the ring? ASSISTANT:", pieces, added)
    assert prompt[-len(tail):] == tail
    assert processor.image_processor.image_mean == pytest.approx([0.485, 0.456, 0.406], abs=1e-3), "the released weights' normalisation"
    model = PixelLMForConditionalGeneration.from_pretrained(out)
    assert model.config.codebook_token_ids == list(added.values())[:6] and model.config.image_token_id == len(pieces) + 8
    model.save_pretrained(folder / "saved")
    again = load_file(folder / "saved" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    answer = Segmenter.from_pretrained(str(out)).segment([random_photo(40, 60)], ["where is the ring?"], max_new_tokens=4)[0]
    assert answer.num_tokens <= 4 and answer.size_hw == (40, 60)


def test_ids_that_are_not_the_tokenizers_are_an_error(released, capsys):
    folder, pieces = released
    sources = [f"official={folder / 'official'}", f"vision_tower={folder / 'tower'}", f"out={folder / 'ours'}"]
    said = error_of(capsys, *sources, "codebook_token_ids=[1,2,3,4,5,6]")
    assert "the tokenizer's ids are" in said and f"'[SEG0]': {len(pieces)}" in said and not (folder / "ours").exists()
    assert "scales x 2 tokens" in error_of(capsys, *sources, "num_tokens_per_scale=2", "codebook_token_ids=[1,2,3]")


def test_without_config_json_what_the_tensors_do_not_show_is_asked_for(released, capsys):
    folder, _ = released
    sources = [f"official={folder / 'official'}", f"vision_tower={folder / 'tower'}", f"out={folder / 'ours'}"]
    (folder / "official" / "config.json").unlink()
    said = error_of(capsys, *sources)
    assert "num_attention_heads, rms_norm_eps and max_position_embeddings" in said and not (folder / "ours").exists()
    settings = "language_model={num_attention_heads: 4, rms_norm_eps: 1.0e-6, max_position_embeddings: 1024}"
    run(capsys, *sources, settings)
    config = PixelLMForConditionalGeneration.from_pretrained(folder / "ours").config.text_config
    assert (config.num_hidden_layers, config.num_key_value_heads, config.intermediate_size) == (3, 4, 128)


@pytest.mark.parametrize(("arguments", "said"), [
    (["out=x"], "give one of official=DIR and from_llava=DIR"), (["out=x", "official=a", "from_llava=b"], "give one of"),
    (["out=x", "from_llava=/nowhere"], "neither tokenizer.model nor tokenizer.json")])
def test_a_slip_on_the_command_line_is_named(arguments, said, capsys):
    assert said in error_of(capsys, *arguments)


@pytest.fixture(scope="module")
def llava():
    """Random weights of LLaVA's own class, and its state dict in today's names."""
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(vocab_size=420, **TEXT), image_token_id=0)
    return LlavaForConditionalGeneration(config).eval()


def write_llava(llava, folder: Path, form: str) -> list[str]:
    """LLaVA in one of its forms, with a tokenizer. Returns the tokenizer's pieces."""
    tensors = {name.replace("vision_model.", ""): tensor for name, tensor in llava.state_dict().items()}
    config = llava.config.to_dict()
    pieces = write_tokenizer(folder)
    if form == "original":
        tower = CLIPVisionModel(llava.config.vision_config)
        prefix = "model.vision_tower."
        tower.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)})
        tower.save_pretrained(folder / "tower")
        tensors = {name.replace("model.language_model.", "model.").replace("multi_modal_projector.linear_1", "mm_projector.0")
                   .replace("multi_modal_projector.linear_2", "mm_projector.2"): tensor
                   for name, tensor in tensors.items() if not name.startswith(prefix)}
        config = config["text_config"] | {"model_type": "llava", "mm_hidden_size": 32}
    elif form == "hf_old":
        tensors = {"language_model.lm_head.weight" if name == "lm_head.weight" else
                   name.removeprefix("model.").replace("language_model.", "language_model.model.")
                   .replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return pieces


@pytest.mark.parametrize("form", ["hf_new", "hf_old", "original"])
def test_every_form_of_llava_gives_the_same_start(llava, form, tmp_path, capsys):
    pieces = write_llava(llava, tmp_path / "llava", form)
    out = tmp_path / "ours"
    tower = [f"vision_tower={tmp_path / 'llava' / 'tower'}"] if form == "original" else []
    printed = run(capsys, f"from_llava={tmp_path / 'llava'}", *tower, f"out={out}")
    assert "left out 4 stored tensors: LLaVA's projector has other shapes" in printed
    model, theirs = PixelLMForConditionalGeneration.from_pretrained(out).eval(), llava.state_dict()
    for name, tensor in model.language_model.state_dict().items():
        stored = name if name == "lm_head.weight" else name.replace("model.", "model.language_model.", 1)
        assert torch.equal(tensor, theirs[stored]), name
    ours = model.vision_tower.state_dict()
    table = llava.model.vision_tower.state_dict()
    stored_table = next(tensor for name, tensor in table.items() if name.endswith("position_embedding.weight"))
    assert torch.equal(ours["embeddings.position_embedding.weight"], resize_position_table(stored_table, 32))
    assert all(torch.equal(tensor, table.get(name, table.get(f"vision_model.{name}")))
               for name, tensor in ours.items() if "position_embedding" not in name)
    for rows, stored in (("input_rows", "model.language_model.embed_tokens.weight"), ("output_rows", "lm_head.weight")):
        torch.testing.assert_close(getattr(model.codebook, rows), theirs[stored].mean(0).expand(6, -1), atol=0, rtol=0)
    assert all(tensor.isfinite().all() and tensor.abs().max() < 10 for tensor in model.state_dict().values())
    assert model.config.codebook_token_ids[0] == len(pieces)
    ids = torch.tensor([[1, 5, 9, 300]])
    with torch.no_grad():
        torch.testing.assert_close(model.language_model(ids).logits, llava.lm_head(llava.model.language_model(ids).last_hidden_state),
                                   atol=0, rtol=0)
    answer = Segmenter.from_pretrained(str(out)).segment([random_photo(40, 60)], ["where?"], max_new_tokens=3)[0]
    assert answer.num_tokens <= 3


def test_a_projector_of_our_shape_is_kept(llava, tmp_path, capsys):
    write_llava(llava, tmp_path / "llava", "original")
    file = tmp_path / "llava" / "model.safetensors"
    tensors = load_file(file)
    fitting = {"0.weight": (128, 32), "0.bias": (128,), "2.weight": (64, 128), "2.bias": (64,)}
    tensors |= {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in fitting.items()}
    save_file(tensors, file)
    run(capsys, f"from_llava={tmp_path / 'llava'}", f"vision_tower={tmp_path / 'llava' / 'tower'}", f"out={tmp_path / 'ours'}")
    projector = PixelLMForConditionalGeneration.from_pretrained(tmp_path / "ours").projector.state_dict()
    assert all(torch.equal(projector[name], tensors[f"model.mm_projector.{name}"]) for name in fitting)


def test_what_does_not_fit_llava_is_listed_at_once(llava, tmp_path, capsys):
    write_llava(llava, tmp_path / "llava", "hf_new")
    file = tmp_path / "llava" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.language_model.layers.1.mlp.up_proj.weight"]
    tensors["model.surprise"] = torch.zeros(1)
    tensors["language_model.lm_head.weight"] = tensors["lm_head.weight"].clone()
    tensors["model.language_model.norm.weight"] = torch.zeros(3)
    save_file(tensors, file)
    said = error_of(capsys, f"from_llava={tmp_path / 'llava'}", f"out={tmp_path / 'ours'}")
    for part in ("1 missing: language_model.model.layers.1.mlp.up_proj.weight", "2 not known: ", "model.surprise", "(beside ",
                 "norm.weight is [3], expected [64]"):
        assert part in said
    assert not (tmp_path / "ours").exists()
    assert "leave vision_tower out" in error_of(capsys, f"from_llava={tmp_path / 'llava'}", f"vision_tower={tmp_path}", "out=x")
    write_llava(llava, tmp_path / "original", "original")
    assert "give vision_tower" in error_of(capsys, f"from_llava={tmp_path / 'original'}", f"out={tmp_path / 'ours'}")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n"
DAMAGED = [LFS, b"404: Not Found", b"<html><body>log in</body></html>", b"", b"\0" * 99, b"[1, 2]", b'{"a": ', b"5"]


def test_a_damaged_file_beside_the_weights_is_named_before_anything_is_written(llava, tmp_path, capsys):
    """Each file that the conversion reads, whatever stands in its place."""
    write_llava(llava, tmp_path / "llava", "hf_new")
    names = ["config.json", "preprocessor_config.json", "added_tokens.json", "tokenizer.model", "model.safetensors"]
    for name in names:
        file = tmp_path / "llava" / name
        kept = file.read_bytes() if file.is_file() else None
        for data in DAMAGED:
            file.write_bytes(data)
            said = error_of(capsys, f"from_llava={tmp_path / 'llava'}", f"out={tmp_path / 'ours'}")
            assert str(file) in said and "fetch it again" in said and "Traceback" not in said, (name, data)
        if kept is None:
            file.unlink()
        else:
            file.write_bytes(kept)
    whole = (tmp_path / "llava" / "tokenizer.model").read_bytes()
    (tmp_path / "llava" / "tokenizer.model").write_bytes(whole[:len(whole) // 2])
    assert "tokenizer.model is not whole" in error_of(capsys, f"from_llava={tmp_path / 'llava'}", f"out={tmp_path / 'ours'}")
    (tmp_path / "llava" / "tokenizer.model").unlink()
    for values in ({}, {"model": []}, {"model": {"byte_fallback": True}}, {"model": {"byte_fallback": True, "vocab": {}, "merges": [5]}},
                   {"model": {"byte_fallback": True, "vocab": {"a": 0}, "merges": []}, "added_tokens": []}):
        (tmp_path / "llava" / "tokenizer.json").write_text(json.dumps(values))
        assert str(tmp_path / "llava") in error_of(capsys, f"from_llava={tmp_path / 'llava'}", f"out={tmp_path / 'ours'}")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(("values", "said"), [
    ({"text_config": []}, "is a list, expected keys and values"), ({"text_config": {"model_type": "no-such"}}, "model_type 'no-such'"),
    ({"text_config": {"model_type": "llama", "num_attention_heads": "many"}}, "does not make a configuration of llama"),
    ({"vision_config": 5}, "is a int, expected keys and values")])
def test_a_configuration_that_is_none_is_named(llava, tmp_path, capsys, values, said):
    write_llava(llava, tmp_path / "llava", "hf_new")
    file = tmp_path / "llava" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    found = error_of(capsys, f"from_llava={tmp_path / 'llava'}", f"out={tmp_path / 'ours'}")
    assert said in found and str(file) in found and not (tmp_path / "ours").exists()


def test_a_byte_order_mark_is_read(llava, tmp_path, capsys):
    write_llava(llava, tmp_path / "llava", "hf_new")
    (tmp_path / "llava" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": null}')
    for name in ("config.json", "preprocessor_config.json"):
        file = tmp_path / "llava" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    run(capsys, f"from_llava={tmp_path / 'llava'}", f"out={tmp_path / 'ours'}")
    assert Segmenter.from_pretrained(str(tmp_path / "ours")).processor.image_processor.image_mean == [0.5, 0.5, 0.5]


def test_a_pickle_that_is_not_of_tensors_is_refused(released):
    folder, _ = released
    (folder / "official" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Path("x")}, folder / "official" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a whole file of tensors that can be mapped"):
        plan_official(folder / "official", folder / "tower", list(range(6)), 3)


def test_a_file_that_is_not_whole_is_named(released):
    folder, _ = released
    file = folder / "official" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is not whole"):
        plan_official(folder / "official", folder / "tower", list(range(6)), 3)
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of Git LFS"):
        plan_official(folder / "official", folder / "tower", list(range(6)), 3)


MEASURE = """
import sys
from pathlib import Path
from pixellm.model import conversion, tensor_plan

def peak_mb():  # not ru_maxrss: a child starts with its parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

tensor_plan.OUTPUT_SHARD_BYTES = 16 << 20
folder = Path(sys.argv[1])
planned = conversion.plan_llava(folder, None, list(range(420, 426)), 3)
before = peak_mb()
tensor_plan.write_model(*planned, folder / "ours")
print(peak_mb() - before)
"""


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_memory_holds_a_shard_and_not_the_checkpoint(llava, kind, tmp_path):
    """192 MB in shards of 16 MB, written as shards of 16 MB: loading all of them would break the bound."""
    write_llava(llava, tmp_path, "hf_new")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 12, "intermediate_size": 21845}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    small = llava.state_dict()
    shards = [{name: tensor for name, tensor in small.items() if "language_model.layers." not in name}]
    for layer in range(12):
        shard = {name.replace("layers.0.", f"layers.{layer}."): tensor
                 for name, tensor in small.items() if "language_model.layers.0." in name}
        mlp = f"model.language_model.layers.{layer}.mlp"
        shards.append(shard | {f"{mlp}.gate_proj.weight": torch.ones(21845, 64), f"{mlp}.up_proj.weight": torch.ones(21845, 64),
                               f"{mlp}.down_proj.weight": torch.ones(64, 21845)})
    for index, shard in enumerate(shards):
        if kind == "bin":
            torch.save(shard, tmp_path / f"pytorch_model-{index:05d}.bin")
        else:
            save_file(shard, tmp_path / f"model-{index:05d}.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 6 * 16  # MB; 64 seen with safetensors, whose pages stay mapped while their shard is written, 29 with bin
