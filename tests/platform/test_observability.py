"""Prometheus' own tool says the same of its files as our check."""

import shutil
import subprocess

import pytest

from tests.conftest import ROOT


# Debian's promtool is built without the discovery of pods, and refuses prometheus-kubernetes.yaml for that.
@pytest.mark.parametrize("arguments", [["rules", "alerts.yaml"], ["config", "--syntax-only", "prometheus.yaml"]], ids=["rules", "config"])
def test_promtool_takes_them(arguments):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; on Debian it is in the package prometheus")
    command = ["promtool", "check", *arguments]
    done = subprocess.run(command, cwd=ROOT / "platform/observability", capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "SUCCESS" in done.stdout + done.stderr, done.stdout + done.stderr
