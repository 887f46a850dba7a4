"""The site over docs/: built strictly, without a request to others; and what its pages say to type is there to be typed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from helpers.pages import SIZES, browsing
from stllava.commands import COMMANDS, every_command

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OTHERS = ("README.md", "RELEASING.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
PAGES = [*(ROOT / name for name in OTHERS), *sorted(DOCS.rglob("*.md"))]
GENERATED = {DOCS / "cli.md", *(DOCS / "api").glob("*.md")}
sys.path.insert(0, str(ROOT / "tools"))

from cli_docs import flags_of  # noqa: E402 - a script beside the package

FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`stllava ([^`\n]+)`")


@cache
def known_flags(command: str) -> frozenset[str]:
    """The flags of a command."""
    names = [flag.name for flag in flags_of(every_command()[command])]
    return frozenset(names) | {name.replace("--no-", "--") for name in names} | {f"--no-{name[2:]}" for name in names}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED], ids=lambda page: page.name)
def test_every_command_in_a_sentence_exists_with_its_flags(page: Path) -> None:
    commands = every_command()
    for words in map(str.split, INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))):
        if words[0].startswith("-"):
            assert words[0] in ("--version", "--log"), words
            continue
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in {*commands, *COMMANDS}), None)
        assert name is not None, f"stllava {' '.join(words)}"
        flags = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
        flags = {flag for flag in flags if not flag.startswith("--data.")}  # Those of the kind of data that a recipe names.
        known = known_flags(name) if name in commands else frozenset()
        assert flags <= known | {"--help"}, f"stllava {name}: {sorted(flags - known)}"


def listed(entries: object) -> Iterator[str]:
    """The pages of a navigation."""
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            for inner in entry.values():
                yield from listed(inner) if isinstance(inner, list) else [str(inner)]
        else:
            yield str(entry)


def navigation() -> list[str]:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    return list(listed(nav))


def test_the_site_has_every_page_and_llms_txt_names_each() -> None:
    pages = navigation()
    assert sorted(pages) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    told = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", told, re.MULTILINE) == [page for page in pages if page != "index.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_nobody_else_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]* href=\"(https?:[^\"]+)\"[^>]*rel=\"(?:stylesheet|preconnect)\"", text)
        assert loaded == [], page
        shown = re.sub(r"<code.*?</code>", "", text, flags=re.DOTALL)
        assert "```" not in shown, f"{page}: a fence that the site does not know"
        assert not re.search(r"<td><code>[^<]*\\\|", text), f"{page}: a backslash that only GitHub wants"
        assert "&lt;!--" not in shown, f"{page}: a mark that readers see"


@pytest.mark.slow
def test_no_page_of_the_site_is_wider_than_a_phone(site: Path) -> None:
    pages = sorted(site.rglob("index.html"))
    with browsing() as browser:
        width, height = SIZES["phone"]
        page = browser.new_page(viewport={"width": width, "height": height})
        wide = {}
        for file in pages:
            page.goto(file.as_uri())
            wide[str(file.relative_to(site))] = page.evaluate("document.scrollingElement.scrollWidth")
    assert len(wide) == len(navigation())
    assert {name: pixels for name, pixels in wide.items() if pixels > width} == {}


FAINT = """() => {
    const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const channels = colour => {
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (front, back) => [0, 1, 2].map(i => front[3] * front[i] + (1 - front[3]) * back[i]).concat(1);
    const behind = element => {
        if (!element) return [255, 255, 255, 1];
        const own = channels(getComputedStyle(element).backgroundColor);
        return own[3] === 1 ? own : over(own, behind(element.parentElement));
    };
    const light = colour => {
        const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = {};
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; node = walker.nextNode();) {
        const element = node.parentElement, text = node.textContent.trim();
        if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const style = getComputedStyle(element), back = behind(element);
        const sides = [light(over(channels(style.color), back)), light(back)].sort((a, b) => b - a);
        const ratio = (sides[0] + 0.05) / (sides[1] + 0.05), size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
        const colours = `${style.color} on ${back.slice(0, 3)}: ${ratio.toFixed(2)}`;
        if (ratio < (large ? 3 : 4.5) - 0.01) found[colours] = text.slice(0, 40);
    }
    return found;
}"""
"""Texts whose colour stands out from what lies behind it by less than WCAG 2.2 asks for (AA, 1.4.3), by their colours."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_the_site_can_be_told_from_its_ground(site: Path, scheme: str) -> None:
    with browsing() as browser:
        width, height = SIZES["desktop"]
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        faint = {}
        for file in sorted(site.rglob("index.html")):
            page.goto(file.as_uri())
            shown = page.evaluate("document.body.dataset.mdColorScheme")
            assert shown == {"light": "default", "dark": "slate"}[scheme]
            if found := page.evaluate(FAINT):
                faint[str(file.relative_to(site))] = found
    assert faint == {}


def test_a_faint_text_is_found() -> None:
    with browsing() as browser:
        page = browser.new_page()
        page.set_content(
            '<body style="background: #fff"><p style="color: #777">faint</p><p style="color: #767676">clear</p>'
            '<div style="background: rgba(0, 0, 0, 0.9)"><p style="color: #000">black on black</p></div></body>'
        )
        assert sorted(page.evaluate(FAINT).values()) == ["black on black", "faint"]
