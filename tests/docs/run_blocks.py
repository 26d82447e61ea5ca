"""Run the documents' blocks as a newcomer would: `python -m tests.docs.run_blocks auto|head FOLDER`, in namespaces of its own.

`auto`: no Ray runs, so each command starts one. `head`: a head with its token runs, and serves the model that ships. The blocks run in
FOLDER, which is not the project's; what it holds before the first block is what the documents take for granted: a photo, and COCO's files.
Prints one JSON object a block: its place, exit status, seconds, and the end of its output.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.data.sources.instances_files import annotation, image, write_dataset
from tests.docs.blocks import Block, read_all
from tests.ray.namespace import bring_loopback_up

TIMEOUT_S = 900
HEAD = "ray start --head --disable-usage-stats --num-cpus=8 --object-store-memory=400000000 --include-dashboard=true"
SERVE = "python -m jobs.deploy --config serve/configs/tiny.yaml model=tiny"


def main(mode: str, folder: Path) -> None:
    """Entry point."""
    bring_loopback_up()
    prepare(folder)
    environment = os.environ | {"HOME": str(folder), "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    if mode == "head":
        for command in (HEAD, SERVE):
            subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True, stdout=sys.stderr)
    background: dict[str, subprocess.Popen] = {}
    for block in read_all():
        if block.runs_in(mode):
            print(json.dumps(run(block, folder, environment, background)), flush=True)
    for process in background.values():
        process.kill()


def prepare(folder: Path) -> None:
    """The files that the documents speak of."""
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (folder / "photo.png").write_bytes((ROOT / "serve/web/examples/scene-32.jpg").read_bytes())
    for split in ("train2017", "val2017"):
        numbers = range(1, 9)
        keys = write_dataset(folder / split, [image(each) for each in numbers], [annotation(each, each) for each in numbers])
        (folder / "coco/annotations").mkdir(parents=True, exist_ok=True)
        Path(keys["input"]).rename(folder / "coco" / split)
        Path(keys["annotations"]).rename(folder / f"coco/annotations/instances_{split}.json")


def run(block: Block, folder: Path, environment: dict[str, str], background: dict[str, subprocess.Popen]) -> dict:
    """Run a block, and tell how it ended; one that stays in the background has ended well when it still runs after a while."""
    begun = time.monotonic()
    command = ["python", "-c", block.text] if "python" in (block.kind or "") else ["bash", "-euo", "pipefail", "-c", block.text]
    where = ROOT if block.kind == "checkout" else folder
    process = subprocess.Popen(command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if block.kind == "background":
        background[block.place] = process
        time.sleep(10)
        status, output = process.poll() or 0, ""
    else:
        output, _ = process.communicate(timeout=TIMEOUT_S)
        status = process.returncode
    return {"place": block.place, "status": status, "seconds": round(time.monotonic() - begun, 1), "output": output[-1500:]}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
