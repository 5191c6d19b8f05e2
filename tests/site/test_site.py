"""The site as a person sees it: every page on a screen and on a phone, light and dark, and what they can click."""

import html.parser
import itertools
import urllib.parse

import pytest
from built import SCREENSHOTS, SITE

pytestmark = pytest.mark.site
PAGES = sorted(str(p.relative_to(SITE)) for p in SITE.rglob("*.html")) if SITE.exists() else []
READ = [page for page in PAGES if page not in ("genindex.html", "search.html", "py-modindex.html")]
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")


class Anchors(html.parser.HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)


PARSED = {page: Anchors((SITE / page).read_text()) for page in PAGES}


def test_there_is_a_site():
    assert len(READ) > 10


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_exist_and_images_have_text(name):
    for link in PARSED[name].links:
        url = urllib.parse.urlsplit(link)
        if url.scheme or url.netloc:
            assert url.scheme in ("https", "mailto"), link
            continue
        target = (SITE / name).parent / urllib.parse.unquote(url.path) if url.path else SITE / name
        assert target.resolve().exists(), link
        if url.fragment and target.suffix == ".html":
            ids = PARSED[str(target.resolve().relative_to(SITE.resolve()))].ids
            assert urllib.parse.unquote(url.fragment) in ids, link
    for image in PARSED[name].images:
        assert image.get("alt"), image


@pytest.mark.parametrize(("width", "scheme"), list(itertools.product(WIDTHS, SCHEMES)))
@pytest.mark.parametrize("name", READ)
def test_every_page_fits_its_screen_without_errors(visit, name, width, scheme):
    page = visit(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1
    body = page.inner_text("article")
    assert "$$" not in body
    assert "\\frac" not in body
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert broken == []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    is_short = page.evaluate("document.documentElement.scrollHeight") < 16_000  # Chromium's limit for a picture
    page.screenshot(path=SCREENSHOTS / f"{name.replace('/', '_')[:-5]}-{width}-{scheme}.png", full_page=is_short)


def test_search_finds_adamw(visit):
    page = visit("search.html?q=adamw")
    page.wait_for_selector("#search-results li")
    found = page.inner_text("#search-results")
    assert "adamw" in found.lower()


def test_the_copy_button_copies_the_code(visit):
    page = visit("precision.html")
    block = page.locator("div[class*=highlight-]:has(button.copybtn)").first
    block.hover()
    block.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip()


def test_tabs_switch(visit):
    page = visit("start.html")
    labels = page.locator(".sd-tab-set").first.locator("> label")
    assert labels.count() == 4
    for i in range(4):
        labels.nth(i).click()
        shown = page.locator(".sd-tab-set").first.locator("> .sd-tab-content:visible")
        assert shown.count() == 1
