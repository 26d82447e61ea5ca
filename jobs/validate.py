"""Checks files before anything is started: `python -m jobs.validate platform jobs/configs serve/configs [crds=FOLDER]`.

Run YAMLs, deployments, `ray up` clusters, Kubernetes manifests and overlays, Dockerfiles, Prometheus rules and Grafana boards: unknown
keys, wrong values, files and jobs that are not there, names and versions that do not agree. It asks nobody: with the folder of KubeRay's
CRDs in `crds`, Ray's objects are checked against them too. Ends with 1 when something is found, and says what it could not check.
"""

import argparse
import sys

from jobs.validation.check import validate
from pixellm.errors import PixelLMError


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="jobs.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files and folders; crds=FOLDER holds KubeRay's CRDs")
    given = parser.parse_args(argv).paths
    crds = next((path.removeprefix("crds=") for path in given if path.startswith("crds=")), None)
    try:
        report = validate([path for path in given if not path.startswith("crds=")], crds)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    for finding in sorted(report.findings):
        print(finding)
    for reason in report.unchecked:
        print(f"not checked: {reason}")
    print(f"{report.num_files} files, {len(report.findings)} findings")
    sys.exit(1 if report.findings else 0)


if __name__ == "__main__":
    main()
