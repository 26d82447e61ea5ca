"""What a browser may do with an answer: a strict content security policy, no sniffing, no frames, no referrer."""

import base64
import hashlib
import re

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_POLICY = ("default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
                  "frame-ancestors 'none'")
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), geolocation=(), microphone=()",  # the page may take a photo
}
TRANSPORT = {"strict-transport-security": "max-age=31536000"}
DOCS_FILES = "docs/assets"  # below it are Swagger UI's script and style, out of the package fastapi_offline


class SecurityHeaders:
    """Adds `HEADERS` to every answer, where a route has not set its own; with `is_tls` also that the site is HTTPS only."""

    def __init__(self, app: ASGIApp, is_tls: bool = False):
        self._app, self._headers = app, HEADERS | (TRANSPORT if is_tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def add_docs_route(api: FastAPI) -> None:
    """`/docs`: Swagger UI, without any other server; its policy names the page's inline script by hash."""
    page = get_swagger_ui_html(openapi_url="openapi.json", title=f"{api.title}: the interface", swagger_favicon_url="data:,",
                               swagger_js_url=f"{DOCS_FILES}/swagger-ui-bundle.js", swagger_css_url=f"{DOCS_FILES}/swagger-ui.css")
    html = bytes(page.body).decode()
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
              for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    policy = (f"default-src 'none'; script-src 'self' {' '.join(hashes)}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
              "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(html, headers={"content-security-policy": policy})

    api.mount(f"/{DOCS_FILES}", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
