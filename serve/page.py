"""`GET /` and `/web/…`: the page for people, static files of `serve/web/`."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "web"
_TYPES = {".js": "text/javascript; charset=utf-8"}  # the system's own table of types can say anything of it


class _Files(StaticFiles):
    """Browsers ask each time whether a file is still the same, and get 304 by its ETag."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        if response.status_code == 200 and (kind := _TYPES.get(Path(path).suffix)):
            response.headers["content-type"] = kind
        return response


def add_page(api: FastAPI) -> None:
    """Everything that the page loads is here: it works without any other server."""
    files = _Files(directory=FOLDER)
    api.mount("/web", files, name="web")

    @api.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)
