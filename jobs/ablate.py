"""What each part is worth: `python -m jobs.ablate --config jobs/configs/ablate_tiny_cpu.yaml output=URI`. Run again, it goes on.

Writes ablation.md, ablation.png and ablation.json to `output`, and the result of each trial below it.
"""

import dataclasses
import io
import json
import sys
import time

import ray

from jobs.benchmarks.intervals import draw_intervals
from jobs.benchmarks.result import describe_machine
from pixellm.errors import PixelLMError
from pixellm.revision import git_revision
from pixellm.settings import parse_command_line
from pixellm.storage import join_uri, write_bytes
from pixellm.train.ablation import AblateConfig, run_trials
from pixellm.train.ablation_table import build_table, to_markdown
from pixellm.train.console import format_duration, say


def main(argv: list[str] | None = None) -> None:
    """Entry point. Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts Ray on this machine."""
    config = parse_command_line(AblateConfig, __doc__ or "", argv)
    started = time.monotonic()
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    try:
        rows = build_table(run_trials(config, say))
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    machine = describe_machine()
    about = (f"{config.num_seeds} seeds, {config.steps} steps of {config.photos_per_step} photos, {config.num_held_out} held-out scenes. "
             "Means over seeds with the 95 % interval of Student's t; differences are paired by seed. Command: `python -m jobs.ablate "
             f"{' '.join(sys.argv[1:] if argv is None else argv)}`, {time.strftime('%Y-%m-%d')}, {machine['cpu']} x {machine['cores']}, "
             f"revision {git_revision()}.")
    table = to_markdown(rows, about)
    picture = io.BytesIO()
    draw_intervals(f"gIoU against {rows[0]['variant']}, 95 % intervals", [
        (row["variant"], found.value, found.low, found.high) for row in rows if (found := row["giou"]["difference"])]).save(picture, "PNG")
    report = {"settings": config.model_dump(mode="json"), "machine": machine, "git_revision": git_revision(), "rows": rows}
    files = {"ablation.md": table.encode(), "ablation.png": picture.getvalue(),
             "ablation.json": json.dumps(report, indent=1, default=dataclasses.asdict).encode()}
    for name, content in files.items():
        write_bytes(join_uri(config.output, name), content)
    print(f"{table}\nablate: {format_duration(time.monotonic() - started)}; table and plot in {config.output}")


if __name__ == "__main__":
    main()
