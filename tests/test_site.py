"""The documentation site: built, then looked at in a browser."""

import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading

import pytest
from helpers.pages import PAGES, ROOT

PACKAGES = ("mkdocs", "material", "mkdocstrings_handlers")
SITE = sorted(
    page.removeprefix("docs/").replace(".md", ".html") for page in PAGES if page.startswith("docs/")
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'sepstop[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def opened(chromium, site):
    """Opens a page of the site; nothing may be complained of or asked for elsewhere by the end."""
    contexts, wrong = [], []

    def opens(page, width, scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(site) else None)
        tab.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if not r.ok else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(f"{site}/{page}", wait_until="networkidle")
        return tab

    yield opens
    for context in contexts:
        context.close()
    assert [what for what in wrong if not what.startswith(("data:", "blob:", "304 "))] == []


@pytest.mark.parametrize("page", SITE)
def test_a_page_fits_a_phone_and_asks_nothing_of_the_network(opened, page):
    tab = opened(page, 360)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.locator("h1").count() == 1
    broken = "[...document.images].filter(one => one.complete && !one.naturalWidth).map(o => o.src)"
    assert tab.evaluate(broken) == []


def test_a_wide_table_scrolls_in_its_own_box(opened):
    tab = opened("evidence.html", 360)
    box = tab.locator(".md-typeset__scrollwrap").nth(1)
    width, content = box.evaluate("one => [one.clientWidth, one.scrollWidth]")
    assert width <= 360 < content
    box.evaluate("one => { one.scrollLeft = 200 }")
    assert box.evaluate("one => one.scrollLeft") == 200


@pytest.mark.parametrize(("scheme", "expected"), [("light", "default"), ("dark", "slate")])
def test_the_colors_are_those_of_the_system(opened, scheme, expected):
    tab = opened("index.html", 1280, scheme)
    assert tab.locator("body").get_attribute("data-md-color-scheme") == expected


def test_the_search_finds_a_page(opened):
    tab = opened("index.html", 1280)
    tab.locator("input.md-search__input").press_sequentially("Madow")
    found = tab.locator(".md-search-result__link")
    found.locator("mark", has_text="Madow").first.wait_for()
    assert "method.html" in found.first.get_attribute("href")


def test_the_reference_has_all_public_names(opened):
    import sepstop

    tab = opened("api.html", 1280)
    anchors = set(tab.eval_on_selector_all("[id^=sepstop]", "all => all.map(one => one.id)"))
    shown = {anchor.rpartition(".")[2] for anchor in anchors}
    assert {name for name in sepstop.__all__ if not name.startswith("_")} <= shown
