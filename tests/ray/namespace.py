"""A program in namespaces of its own: no network but a loopback that nobody else has, and no processes but its own.

For what listens on all interfaces (HAProxy), and for what ends every Ray that it finds (`AutoscalingCluster`).
"""

import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from fcntl import ioctl
from socket import AF_INET, SOCK_DGRAM, socket

import pytest

from tests.conftest import ROOT

UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def run_apart(module: str, *arguments: object, env: Mapping[str, str], shell: str = "true") -> str:
    """`python -m module arguments…` after the shell's `shell`, in namespaces; its output. Skips where the machine gives none."""
    try:
        if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
            pytest.skip("this machine gives no namespaces (unshare --user --net --pid)")
    except FileNotFoundError:
        pytest.skip("there is no unshare (util-linux) on this machine")
    command = [*UNSHARE, sys.executable, "-m", module, *map(str, arguments)]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    ended = subprocess.run(["bash", "-c", f'{shell} && exec "$@"', "bash", *command], cwd=ROOT, env=os.environ | {"PATH": path, **env},
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]
    return ended.stdout


def bring_loopback_up() -> None:
    """In a new namespace it is down. Numbers: SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP of <linux/sockios.h> and <net/if.h>."""
    with socket(AF_INET, SOCK_DGRAM) as control:
        name, flags = struct.unpack("16sh", ioctl(control, 0x8913, struct.pack("16sh", b"lo", 0)))
        ioctl(control, 0x8914, struct.pack("16sh", name, flags | 1))
