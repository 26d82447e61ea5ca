"""`/docs` in Chromium: the interface is shown, and nothing is loaded from any other server."""

from urllib.parse import urlsplit


def test_the_interface_is_shown_without_another_server(open_page, server):
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server}docs")
    page.locator('[data-path="/v1/segment"]').click()
    page.get_by_role("button", name="Try it out").wait_for()
    assert page.locator(".opblock").count() >= 13
    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {urlsplit(server).netloc}
