"""The page's files over HTTP: types, ETags, nothing from elsewhere. What it does in a browser is tested in tests/browser."""

import asyncio
import re

import httpx
from fastapi import FastAPI

from serve.page import FOLDER, add_page
from tests.serve.test_ingress import call

FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "jpg": "image/jpeg"}


def test_every_file_has_its_type_and_comes_once():
    api = FastAPI()
    add_page(api)

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost") as client:
            for path in ["/", *(f"/web/{name}" for name in FILES)]:
                response = await client.get(path)
                assert response.status_code == 200
                assert response.headers["content-type"].split(";")[0] == TYPES[path.rpartition(".")[2] if "." in path else "html"]
                assert response.headers["cache-control"] == "no-cache"
                again = await client.get(path, headers={"if-none-match": response.headers["etag"]})
                assert again.status_code == 304 and not again.content
                assert (await client.head(path)).headers["content-length"] == str(len(response.content))

    asyncio.run(run())


def test_other_paths_stay_problems():
    for method, path, status in [("GET", "/web/nothing.js", 404), ("GET", "/web/../page.py", 404), ("GET", "/web/%2e%2e/page.py", 404),
                                 ("GET", "/nothing", 404), ("POST", "/", 405), ("GET", "/v1/segment", 405), ("GET", "/web/examples", 404)]:
        response = call(method, path)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (method, path)
    assert "/" not in call("GET", "/openapi.json").json()["paths"]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    for name in FILES:
        if name.endswith((".jpg", ".svg")):
            continue
        text = (FOLDER / name).read_text()
        assert not re.search(r"https?://|//cdn|innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function|document\.write", text), name
        assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=\"", text), name
