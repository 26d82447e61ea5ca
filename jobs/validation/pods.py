"""Pods, wherever a manifest holds one: who they run as, what they ask for, and names that belong together within them."""

import re
from typing import Any

from jobs.validation.documents import Document, Place, Report
from pixellm.settings import did_you_mean

QUANTITY = r"\d+(\.\d+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def check_pod(document: Document, place: Place, report: Report) -> None:
    """The pod specification at `place`."""
    pod = document.at(*place)
    context = pod.get("securityContext") or {}
    if context.get("runAsNonRoot") is not True:
        report.add(document, (*place, "securityContext"), "the pod may run as root; write securityContext: {runAsNonRoot: true, …}")
    if (context.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        report.add(document, (*place, "securityContext"), "no seccomp profile; write seccompProfile: {type: RuntimeDefault}")
    volumes = [str(volume.get("name")) for volume in pod.get("volumes") or () if isinstance(volume, dict)]
    claims = [claim["metadata"]["name"] for claim in document.at(*place[:-2], "volumeClaimTemplates", default=[])]
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(pod.get(kind) or ()):
            if isinstance(container, dict):
                _check_container(document, (*place, kind, index), container, [*volumes, *claims], report)


def _check_container(document: Document, place: Place, container: dict[str, Any], volumes: list[str], report: Report) -> None:
    context = container.get("securityContext") or {}
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for key, value in wanted.items():
        if context.get(key) != value:
            said = str(value).lower().replace("'", "").replace("all", "ALL")
            report.add(document, (*place, "securityContext"), f"container {container.get('name')}: securityContext lacks {key}: {said}")
    _check_resources(document, place, container, report)
    image = str(container.get("image", ""))
    if "@sha256:" not in image and not re.search(r":(?!latest$)[\w.-]+$", image.rpartition("/")[2]):
        report.add(document, (*place, "image"), f"image {image!r} has no version; write name:VERSION, and not latest")
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        if isinstance(mount, dict) and mount.get("name") not in volumes:
            report.add(document, (*place, "volumeMounts", index), f"there is no volume {mount.get('name')!r}; "
                       + did_you_mean(str(mount.get("name")), volumes, "volumes of the pod"))
    ports = [str(port.get("name")) for port in container.get("ports") or () if isinstance(port, dict)]
    for probe in PROBES:
        for way in ("tcpSocket", "httpGet"):
            port = document.at(*place, probe, way, "port")
            if isinstance(port, str) and port not in ports:
                report.add(document, (*place, probe), f"{probe} asks port {port!r}; {did_you_mean(port, ports, 'ports of the container')}")


def _check_resources(document: Document, place: Place, container: dict[str, Any], report: Report) -> None:
    resources = container.get("resources") or {}
    for which in ("requests", "limits"):
        amounts = resources.get(which) or {}
        for name in {"requests": ("cpu", "memory"), "limits": ("memory",)}[which]:
            if name not in amounts:
                report.add(document, (*place, "resources"), f"container {container.get('name')}: resources.{which} lacks {name}; "
                           "say what it needs, or it is ended first where nodes are full")
        for name, amount in amounts.items():
            if not re.fullmatch(QUANTITY, str(amount)):
                report.add(document, (*place, "resources", which, name), f"{name}: {amount!r} is no quantity; write 500m, 2 or 8Gi")
    gpus = [str((resources.get(which) or {}).get("nvidia.com/gpu", "")) for which in ("requests", "limits")]
    if gpus[0] != gpus[1] and gpus[0]:
        report.add(document, (*place, "resources"), f"requests {gpus[0]} GPUs but its limit is {gpus[1] or 'none'}; write the same twice")
