"""The built site, served on a loopback port, and a Chromium that visits it: `make test-docs`."""

import functools
import http.server
import shutil
import threading

import pytest


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """No line for each request."""


@pytest.fixture(scope="session")
def address():
    """The address of the site."""
    from built import SITE  # this folder is on the path of its tests, and not of this file

    assert (SITE / "index.html").exists(), f"{SITE} has no site: make docs"
    handler = functools.partial(_Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Opens a page of the site; at the end of the test it has logged no error and missed no file."""
    contexts, problems = [], []

    def open_page(name, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: problems.append(f"{name}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(f"{name}: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"{name}: {request.url} failed"))
        page.on("response", lambda r: problems.append(f"{name}: {r.url}: {r.status}") if r.status >= 400 else None)
        page.goto(f"{address}/{name}", wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
