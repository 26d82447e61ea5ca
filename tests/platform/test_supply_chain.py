"""Software of others is pinned: each package by its hashes, each action by its commit."""

import re

from tests.conftest import ROOT

BY_MACHINE = {"torch"}  # whose files differ by machine


def pins(file: str) -> dict[str, str]:
    """The version of each package in a file of requirements."""
    found = re.findall(r"(?m)^([\w.-]+)==([\w.+!-]+)", (ROOT / file).read_text())
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_every_pinned_package_has_its_hashes_and_no_other_has():
    locked, pinned = pins("platform/requirements.lock"), pins("constraints.txt")
    assert set(pinned) > BY_MACHINE and {name: pinned[name] for name in set(pinned) - BY_MACHINE} == locked
    entries = re.split(r"(?m)^(?=[\w.-]+==)", (ROOT / "platform/requirements.lock").read_text())[1:]
    assert len(entries) == len(locked)
    for entry in entries:
        first, *others = entry.replace("\\\n", "").split()
        assert others and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in others), first


def test_the_installation_asks_for_hashes():
    assert "--require-hashes --no-deps -r platform/requirements.lock" in (ROOT / "platform/local/setup.sh").read_text()


def test_actions_are_named_by_their_commit():
    used = [line for file in (ROOT / ".github").rglob("*.yml") for line in file.read_text().splitlines() if "uses:" in line]
    assert used and [line for line in used if not re.search(r"uses: [\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line)] == []


def test_images_of_others_are_named_by_their_digest():
    files = [ROOT / "platform/docker/Dockerfile", *(ROOT / "platform/kuberay").rglob("*.yaml")]
    named = [image for file in files for image in re.findall(r"(?m)^ *(?:FROM|image:) (docker\.io/\S+)", file.read_text())]
    assert len(named) == 3 and not [image for image in named if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image)]
