"""The curation job on a real Ray against the test endpoint: shards to shards that training reads, killed, capped, and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import curate as job
from jobs import prepare_data
from pixellm.curation.curate import REJECTED_QUESTIONS
from pixellm.data.collate import Collator
from pixellm.data.parts import ShardOptions
from pixellm.data.prepare import prepare
from pixellm.data.shards import NOTE_SUFFIX, read_manifest, verify_checksums
from pixellm.data.sources.shapes import ShapesSource
from pixellm.data.spans import list_row_groups, read_mixture, read_rows, read_span
from pixellm.data.survey import survey
from pixellm.errors import ShardError
from pixellm.storage import list_files, read_bytes
from tests.conftest import ROOT
from tests.curation.endpoint import KEY, KEY_VARIABLE, Endpoint, serving
from tests.fixtures_s3 import S3Store
from tests.train.examples import base_model

pytestmark = pytest.mark.ray
NUM_SCENES, NUM_SHARDS = 90, 3
Run = Callable[..., dict]


@pytest.fixture(scope="module")
def key_for_workers() -> Iterator[None]:
    """Ray's workers have the environment that Ray was started with."""
    os.environ[KEY_VARIABLE] = KEY
    yield
    os.environ.pop(KEY_VARIABLE, None)


@pytest.fixture(scope="module")
def scenes(key_for_workers, local_ray, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("scenes"))
    prepare(ShapesSource(num_scenes=NUM_SCENES), uri, ShardOptions(shard_size_mb=0.45, row_group_mb=0.15))
    assert len(read_manifest(uri).shards) == NUM_SHARDS
    return uri


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(Endpoint(slow_s=1.5)) as endpoint:
        yield endpoint


def arguments(endpoint: Endpoint, scenes: str, folder: Path | str, *more: str, pipeline: str = "v2") -> list[str]:
    def about(name: str) -> list[str]:
        values = {"url": endpoint.url, "model": "test", "api_key_env": KEY_VARIABLE, "request_timeout_s": 5, "max_concurrency": 8,
                  "price_per_million_input": 1000, "price_per_million_output": 2000}
        return [f"{name}.{key}={value}" for key, value in values.items()]

    return [f"shards={scenes}", f"output={folder}/out", f"cache={folder}/cache", f"pipeline={pipeline}", *about("vision"),
            *(about("language") if pipeline == "v1" else []), *more]


def report_of(folder: Path) -> dict:
    return json.loads((folder / "out/curation.json").read_text())


def with_other(given: list[str], argument: str) -> list[str]:
    """`given` with `argument` in place of the one of the same key."""
    key = argument.partition("=")[0]
    return [each for each in given if each.partition("=")[0] != key] + [argument]


@pytest.mark.parametrize("pipeline", ["v1", "v2"])
def test_shapes_become_shards_that_training_reads(pipeline: str, scenes: str, endpoint: Endpoint, tmp_path: Path, capsys) -> None:
    job.main(arguments(endpoint, scenes, tmp_path, pipeline=pipeline))
    said, report, out = capsys.readouterr().out, report_of(tmp_path), tmp_path / "out"
    manifest = verify_checksums(str(out))
    assert (manifest.num_rows, manifest.num_conversations) == (NUM_SCENES, 3 * NUM_SCENES)
    assert (report["num_photos"], report["num_questions"]) == (NUM_SCENES, 3 * NUM_SCENES)
    assert manifest.sources[0].settings["prompts"] == report["prompts"] and manifest.sources[0].settings["models"]["vision"] == "test"
    counted = survey(str(out))
    assert counted.tasks == {"reasoning": 3 * NUM_SCENES} and min(counted.targets) >= 2

    stages = {"v1": {"caption", "questions", "repair"}, "v2": {"questions", "repair"}}[pipeline]
    costs = report["costs_of_this_run"]
    assert set(costs) == stages and sum(each["num_paid"] for each in costs.values()) == len(endpoint.delivered)
    assert set(endpoint.delivered.values()) == {1} and endpoint.most_open <= {"v1": 16, "v2": 8}[pipeline], "of both workers together"
    assert report["cost"] == pytest.approx(report["cost_of_this_run"]) and report["cost"] > 0
    assert f"{report['num_questions_repaired']} of them from the round of repair" in said

    rejected = [json.loads(line) for line in (out / REJECTED_QUESTIONS).read_text().splitlines()]
    assert Counter(each["reason"] for each in rejected) == {
        reason: counts["questions"] + counts["repair"] for reason, counts in report["questions_rejected"].items()}
    entries = json.loads((out / "muse_train.json").read_text())
    assert sum(len(entry["questions"]) for entry in entries) == 3 * NUM_SCENES
    page = (out / "quality.html").read_text()
    assert page.count("<section>") == 12 and page.count("data:image/jpeg") == 12 * 4 and "bare_description" in page

    mixture = read_mixture([(str(out), None)], seed=0, num_lanes=1)
    span = next(span for span, _ in mixture.rows(0, 0, 1))
    rows = read_rows({0: (read_span(span, 0), 0)}, [(0, place) for place in range(list_row_groups(str(out))[0].num_rows)])
    batch = Collator(processor=base_model()[1], max_conversations=3, seed=0).build(rows[:4])
    assert batch.num_photos == 4 and batch.num_masks >= 24 and not batch.set_aside


def test_a_killed_job_pays_for_nothing_again_and_a_rerun_for_nothing_at_all(scenes: str, endpoint: Endpoint, tmp_path: Path) -> None:
    """Killed with all of its Ray after its first shard; only what was on its way may be paid twice."""
    given = arguments(endpoint, scenes, tmp_path, "num_workers=1")
    process = subprocess.Popen([sys.executable, "-m", "jobs.curate", *given], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline_s = time.monotonic() + 120
    while not list(tmp_path.glob(f"out/shards-*/*{NOTE_SUFFIX}")):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    paid = -1
    while paid != (paid := len(endpoint.delivered)):  # until the workers of its Ray have found out
        time.sleep(2)
    cached = {file.stem for file in (tmp_path / "cache").rglob("*.json")}
    with pytest.raises(ShardError):
        read_manifest(str(tmp_path / "out"))

    job.main(given)
    twice = {endpoint.keys[name] for name, count in endpoint.delivered.items() if count > 1}
    assert not twice & cached and len(twice) <= 8 and max(endpoint.delivered.values()) <= 2
    report, manifest = report_of(tmp_path), verify_checksums(str(tmp_path / "out"))
    assert manifest.num_rows == NUM_SCENES and report["num_questions"] == 3 * NUM_SCENES
    assert report["cost"] > report["cost_of_this_run"], "what the killed run paid for is counted, and not paid again"

    muse, attempts = (tmp_path / "out/muse_train.json").read_bytes(), sum(endpoint.attempts.values())
    job.main([*given, "num_examples=1"])
    assert sum(endpoint.attempts.values()) == attempts and read_manifest(str(tmp_path / "out")).shards == manifest.shards
    job.main(with_other(given, f"output={tmp_path}/elsewhere"))
    assert sum(endpoint.attempts.values()) == attempts and (tmp_path / "elsewhere/muse_train.json").read_bytes() == muse


def test_the_cap_stops_the_job_and_a_higher_one_lets_it_go_on(scenes: str, endpoint: Endpoint, tmp_path: Path, capsys) -> None:
    given = arguments(endpoint, scenes, tmp_path, "max_photos=40", "vision.max_output_tokens=300")
    job.main([*given, "dry_run=true"])
    said = capsys.readouterr().out
    assert "max_cost is not set" in said and not (tmp_path / "out").exists() and not endpoint.arrivals
    most = float(said.split("at most ")[-1].split(",")[0])

    with pytest.raises(SystemExit, match=r"error: .* is spent, the next request to test can cost .*max_cost is 30"):
        job.main([*given, "max_cost=30"])
    said = capsys.readouterr().out
    assert "of 2 shards are finished; start the same job again" in said and not (tmp_path / "out/manifest.json").exists()
    num_paid = len(endpoint.delivered)
    assert 0 < num_paid == len(list((tmp_path / "cache").rglob("*.json")))

    job.main([*given, "max_cost=10000"])
    assert set(endpoint.delivered.values()) == {1} and len(endpoint.delivered) > num_paid
    report = report_of(tmp_path)
    assert report["num_photos"] == 40 and report["cost_of_this_run"] < report["cost"] < most


def test_on_s3_and_the_key_is_in_no_file(scenes: str, endpoint: Endpoint, tmp_path: Path, s3_store: S3Store) -> None:
    """In a Ray of its own, which has the store's environment; all that this Ray wrote is searched too."""
    ray_folder = Path("/tmp") / f"r{os.getpid()}"
    code = ("import ray, sys; from jobs import curate; "
            f"ray.init(address='local', num_cpus=2, include_dashboard=False, _temp_dir={str(ray_folder)!r}); curate.main(sys.argv[1:])")
    given = arguments(endpoint, scenes, s3_store.uri, "max_photos=20")
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert verify_checksums(f"{s3_store.uri}/out").num_rows == 20
    written = {uri: read_bytes(uri) for uri in list_files(s3_store.uri)}
    assert len([uri for uri in written if "/cache/" in uri]) == len(endpoint.delivered) >= 20
    written |= {str(file): file.read_bytes() for file in ray_folder.rglob("*") if file.is_file()}
    assert not [name for name, data in written.items() if KEY.encode() in data] and KEY not in done.stdout + done.stderr


def test_a_photo_that_the_endpoint_fails_on_is_tried_by_the_next_run(scenes: str, tmp_path: Path) -> None:
    with serving(Endpoint(faults={"broken": 0.5})) as endpoint:
        given = arguments(endpoint, scenes, tmp_path, "max_photos=20", "vision.total_timeout_s=0.3", "max_rejected_share=1")
        job.main(given)
        failed = report_of(tmp_path)["photos_set_aside"]["endpoint_failed"]
        assert 0 < failed < 20 and read_manifest(str(tmp_path / "out")).num_rows == 20 - failed
        endpoint.faults = {}
        job.main(given)
    assert read_manifest(str(tmp_path / "out")).num_rows == 20 and set(endpoint.delivered.values()) == {1}


def test_slips_end_the_job_with_one_line(scenes: str, endpoint: Endpoint, tmp_path: Path, capsys, monkeypatch) -> None:
    given = arguments(endpoint, scenes, tmp_path)
    with pytest.raises(SystemExit, match=r"no manifest\.json"):
        job.main(with_other(given, f"shards={tmp_path}"))
    with pytest.raises(SystemExit, match="answered 404"):
        job.main(with_other(given, f"vision.url={endpoint.url}/nowhere"))
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(SystemExit, match=f"{KEY_VARIABLE} holds no key"):
        job.main(given)
    for wrong, message in (("pipeline=v1", "language: pipeline=v1 needs it"), ("visoin.url=x", "did you mean 'vision'")):
        with pytest.raises(SystemExit):
            job.main(with_other(given, wrong))
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("pipeline", ["v1", "v2"])
def test_real_photos_end_to_end(pipeline: str, key_for_workers, local_ray, shared_dir: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    """COCO's photos and masks to questions; the MUSE file back to shards by its own reader."""
    data = shared_dir / "data/coco_permissive"
    prepare_data.main(["source=coco", f"input={data}/images", f"annotations={data}/instances_val2017.json", f"output={tmp_path}/coco"])
    job.main(arguments(endpoint, f"{tmp_path}/coco", tmp_path, "split=val", pipeline=pipeline))
    prepare_data.main(["source=muse", f"input={tmp_path}/out", f"photos={data}/images", "split=val", f"output={tmp_path}/muse",
                       "max_rejected_share=0"])
    ours, again = (read_manifest(f"{tmp_path}/{name}") for name in ("out", "muse"))
    same = ("num_rows", "num_regions", "num_conversations", "num_targets")
    assert [getattr(ours, name) for name in same] == [getattr(again, name) for name in same]
    assert ours.num_rows > 50 and set(ours.rejected_by_reason) <= {"nothing_to_ask"}
