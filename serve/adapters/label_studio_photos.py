"""Photos that lie in Label Studio: read from the one server that the deployment names, with its token, as Label Studio's own SDK does.

Uploaded and local files are paths of that server, files of cloud storages go through its `/tasks/ID/presign/`. A request never says which
server is asked: what `/setup` carries is not believed.
"""

import os
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpx

from serve.fetch import fetch_photo
from serve.fetch_config import FetchConfig, LabelStudioConfig
from serve.pools import FETCHING
from serve.problems import ApiError

CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
MAX_REDIRECTS = 3
PHOTO_PLACES = ("data", "storage-data")


def is_in_label_studio(image: str, config: LabelStudioConfig | None) -> bool:
    """Tell whether a task's photo is a path of Label Studio, a file of a cloud storage, or a URL of the configured server."""
    is_own = config is not None and image.startswith(f"{config.url.rstrip('/')}/")
    return is_own or _is_cloud(image) or image.startswith(("/data/", "data/", "/upload/", "upload/"))


async def read_label_studio_photo(image: str, task_id: int | str | None, config: LabelStudioConfig | None, max_bytes: int) -> bytes:
    """The photo behind `image`. Raises ApiError `image_url` with the way out where none is configured, `image_fetch`, `body_too_large`."""
    if config is None:
        raise ApiError(422, "image_url", f"The photo {image[:80]!r} lies in Label Studio; set `label_studio: {{url: https://…}}` in the "
                       "deployment and its token in $LABEL_STUDIO_API_KEY, or send the photo itself.", "tasks")
    url = to_url(image, task_id, config)
    for hop in range(MAX_REDIRECTS + 1):
        if _is_at(url, config):
            if hop or not _is_cloud(image):  # else `to_url` wrote it
                _check_path(url, config)
        else:  # a presigned address of a cloud: under the rules for addresses that a stranger chooses
            return await fetch_photo(url, FetchConfig(timeout_s=config.timeout_s), max_bytes, "tasks")
        found = await FETCHING.run(_get, url, config, max_bytes)
        if isinstance(found, bytes):
            return found
        url = found
    raise ApiError(422, "image_fetch", f"Label Studio redirects more than {MAX_REDIRECTS} times.", "tasks")


def to_url(image: str, task_id: int | str | None, config: LabelStudioConfig) -> str:
    """The address at the configured server. Raises ApiError `image_url` for a file of a cloud storage in a task without an id."""
    base = config.url.rstrip("/")
    if image.startswith(f"{base}/"):
        return image
    if _is_cloud(image):
        if task_id is None or not str(task_id).isdecimal():
            raise ApiError(422, "image_url", f"{image[:80]!r} is resolved by the task's id, which the task has not.", "tasks")
        return f"{base}/tasks/{task_id}/presign/?fileuri={quote(image, safe='')}"
    path = image.lstrip("/")
    return f"{base}/{path if path.startswith('data/') else f'data/{path}'}"


def _is_cloud(image: str) -> bool:
    return image[:20].partition("://")[0].lower() in CLOUD_SCHEMES


def _check_path(url: str, config: LabelStudioConfig) -> None:
    """The token opens more than photos: it goes to the places of those only. Raises ApiError `image_url`."""
    path, base = unquote(urlsplit(url).path), urlsplit(config.url).path.rstrip("/")
    if not path.startswith(tuple(f"{base}/{place}/" for place in PHOTO_PLACES)) or {"..", "."} & set(path.split("/")) or "\\" in path:
        raise ApiError(422, "image_url", f"{path[:80]!r} is not a place of photos in Label Studio ({', '.join(PHOTO_PLACES)}).", "tasks")


def _is_at(url: str, config: LabelStudioConfig) -> bool:
    asked, own = urlsplit(url), urlsplit(config.url)
    return (asked.scheme, asked.netloc) == (own.scheme, own.netloc)


def _get(url: str, config: LabelStudioConfig, max_bytes: int) -> bytes | str:
    """The photo, or where the server sends one to. Raises ApiError."""
    token = os.environ.get(config.token_env)
    if not token:
        raise ApiError(422, "image_fetch", f"The deployment's environment variable {config.token_env} holds no token.", "tasks")
    try:
        with httpx.stream("GET", url, headers={"authorization": f"Token {token}"}, timeout=config.timeout_s) as response:
            if response.is_redirect:
                return urljoin(url, response.headers["location"])
            if response.status_code != 200:
                raise ApiError(422, "image_fetch", f"Label Studio answered {response.status_code} for the photo; does the token of "
                               f"{config.token_env} belong to it?", "tasks")
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise ApiError(413, "body_too_large", f"The photo in Label Studio is larger than {max_bytes:,} bytes.", "tasks")
            return bytes(data)
    except httpx.HTTPError as error:
        raise ApiError(422, "image_fetch", f"Label Studio at {config.url} gave no photo: {type(error).__name__}.", "tasks") from None
