"""jobs/prepare_data.py: the command line, the summary, and how it ends."""

from pathlib import Path

import pytest
import yaml

from jobs import prepare_data
from pixellm.data.shards import read_manifest
from pixellm.settings import load_yaml
from tests.data.sources.instances_files import annotation, image, write_dataset


def coco_arguments(folder: Path, *more: str) -> list[str]:
    keys = write_dataset(folder, [image(number) for number in range(1, 5)], [annotation(number, number) for number in range(1, 5)])
    return ["source=coco", *(f"{key}={value}" for key, value in keys.items()), f"output={folder / 'out'}", *more]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_it_writes_shards_and_a_summary_twice_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = coco_arguments(tmp_path, "seed=5", "questions_per_photo=2")
    prepare_data.main(arguments)
    first = read_manifest(str(tmp_path / "out"))
    prepare_data.main(arguments)
    assert read_manifest(str(tmp_path / "out")) == first
    assert (first.num_rows, first.seed, first.sources[0].name, first.sources[0].settings["questions_per_photo"]) == (4, 5, "coco", 2)
    assert "rejected by reason    none" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_share_of_bad_photos_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = coco_arguments(tmp_path)
    (tmp_path / "images/2.jpg").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"1 of 4 photos .*photo_format"):
        prepare_data.main(arguments)
    prepare_data.main([*arguments, "max_rejected_share=0.25"])
    assert "rejected by reason    photo_format 1" in capsys.readouterr().out
    assert '"image_id": "2"' in (tmp_path / "out/rejected.jsonl").read_text()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_shapes_need_no_files(tmp_path: Path) -> None:
    prepare_data.main(["source=shapes", "num_scenes=6", "seed=1", f"output={tmp_path}"])
    manifest = read_manifest(str(tmp_path))
    assert (manifest.num_rows, manifest.seed) == (6, 1)


def test_a_dry_run_says_what_is_missing_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*(each for each in coco_arguments(tmp_path) if not each.startswith("output=")), "dry_run=true"]
    with pytest.raises(SystemExit) as ended:
        prepare_data.main(arguments)
    assert ended.value.code == 0 and "4 photos with annotations" in capsys.readouterr().out
    (tmp_path / "images/2.jpg").unlink()
    with pytest.raises(SystemExit) as ended:
        prepare_data.main(arguments)
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "set aside, photo_missing: 1, such as image 2: no 2.jpg below" in said
    assert "it would stop: 1 of 4 photos" in said and not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match=r"missing: annotations .*none_val.json"):
        prepare_data.main([*(each for each in arguments if "annotations=" not in each), f"annotations={tmp_path}/none_val.json"])
    with pytest.raises(SystemExit, match="give the URI of the folder of shards, or dry_run=true"):
        prepare_data.main(arguments[:-1])


@pytest.mark.parametrize(("arguments", "message"), [
    (["source=cocoo"], "did you mean 'coco'"),
    ([], "source: Field required"),
    (["source=coco", "inputt=x", "annotations=y", "output=z"], "inputt: unknown key; did you mean 'input'"),
    (["source=lvis", "shard_size=3"], "did you mean 'shard_size_mb'"),
    (["source=shapes", "num_scenes=none", "output=x"], "num_scenes"),
])
def test_a_wrong_command_line_says_what_is_right(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare_data.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_keys_of_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare_data.main(["source=lvis", "--help"])
    assert caught.value.code == 0
    assert "max_targets" in capsys.readouterr().out


def test_an_unreadable_input_ends_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"missing: annotations"):
        prepare_data.main(["source=coco", f"input={tmp_path}", f"annotations={tmp_path}/none_val.json", f"output={tmp_path}/out"])


@pytest.mark.parametrize("file", sorted(Path(prepare_data.__file__).parent.glob("configs/prepare_*.yaml")), ids=lambda file: file.name)
def test_the_shipped_configurations_are_valid(file: Path) -> None:
    source = yaml.safe_load(file.read_text())["source"]
    config = load_yaml(file, prepare_data.build_config_class(source))
    assert config.model_dump()["source"] == source
