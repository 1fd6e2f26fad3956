"""The documentation: built without a warning, asks the network for nothing, and says what is so."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from irattack import conf
from irattack.commands import composing, plans
from irattack.commands.help import COMMANDS
from irattack.commands.settings import register_resolvers
from irattack.pipeline.settings import settings_of

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    pytest.importorskip("zensical", reason="the group docs is not installed")
    folder = tmp_path_factory.mktemp("docs")
    for name in ("docs", "irattack", "scripts", "mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "weights")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "scripts.docs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; its Debian package has that name")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_every_page_is_built_with_its_equations_and_signatures(site: Path) -> None:
    for page in PAGES:
        built = (site / f"{page.stem}.html").read_text()
        assert "--8&lt;--" not in built
        text = re.sub(r"(?s)<(script|pre|code)\b.*?</\1>", "", built)
        assert not re.search(r"\$\$|\\[a-z]+\{|<merror|:::", text), page
    mathematics = (site / "mathematics.html").read_text()
    assert mathematics.count("<math") > 50
    for name in re.findall(r"^::: (\S+)", (ROOT / "docs/mathematics.md").read_text(), re.M):
        assert f'id="{name}"' in mathematics
    assert "An attack: one function and one yaml" in (site / "tutorial.html").read_text()


def test_pages_ask_the_network_for_nothing_and_fit_a_phone(site: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(f"asks for {request.url[:99]}"))
    for path in sorted(site.glob("*.html")):
        page.goto(path.as_uri())  # until it has loaded
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        assert page.evaluate("document.fonts.ready.then(() => true)")
    assert [text for text in said if not re.match("asks for (file|data|blob):", text)] == []
    assert [text for text in said if "STIXTwoMath-Regular.ttf" in text]  # it is the site's own


def test_the_search_finds_what_is_there(site: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Control+k")
    page.locator("input:visible").fill("cross-fit")  # typed at once, letters come before its focus
    page.wait_for_selector("a[href*='numbers.html']:visible:has-text('cross-fit')", timeout=15_000)


def anchors(path: Path) -> set[str]:
    """The anchors that a forge gives to the headings of a Markdown file."""
    lines = re.sub(r"(?s)```.*?```", "", path.read_text()).splitlines()
    heads = [line.lstrip("#").strip() for line in lines if re.match("#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere_on_a_forge_too(text: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", text.read_text())):
        if re.match("https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (text.parent / name) if name else text
        assert path.exists(), target
        if anchor:
            included = re.findall(r'^--8<-- "([\w.]+)', path.read_text(), re.M)
            files = [path, *(ROOT / name for name in included)]
            assert anchor in {found for file in files for found in anchors(file)}, target


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of the fenced blocks without a language but sh."""
    for block in re.findall(r"(?s)^```(?:sh)?\n(.*?)^```", text, re.M):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z]+=.*", words[0]):
                words = words[1:]
            if words and words[0] != "pip":
                yield words


def compose(words: list[str], table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composes what the words set, of a table or of one cell; of values to combine, the first.

    Of folders that a reader has and this machine has not, the rest of the settings, in one cell.
    """
    for word in words:
        if word.startswith("--config-dir="):
            monkeypatch.setenv(conf.OWN, str(ROOT / word.partition("=")[2]))
    given = [word for word in words if "=" in word and not re.match(r"-|hydra\.", word)]
    there = [word for word in given if not re.search("=(FOLDER|/data)", word)]
    if "-m" in words:
        there = [re.sub(r"(=[^\[,]*),.*", r"\1", word) for word in there]
    with composing.hydra():
        if table and there == given:
            plans.plan(table, given)
        else:
            source = composing.Composer(there).benchmark.sources[0]
            settings_of(composing.composed([f"source={source}", *there]))


@pytest.mark.parametrize(
    "text", [text for text in TEXTS if text.stem != "CONTRIBUTING"], ids=lambda path: path.name
)
def test_commands_are_those_that_there_are(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING.md's, which need its examples, are run by a test of their own."""
    register_resolvers()
    tables = {
        path.stem for kind in ("table", "figure") for path in (ROOT / "conf" / kind).iterdir()
    }
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(text.read_text()):
        if words[0] == "make":
            kind, _, table = words[1].partition("-")
            if kind in ("reproduce", "submit", "aggregate"):
                assert table in tables, words
            else:
                table = ""
                assert re.search(rf"^{words[1]}:", makefile, re.M), words
            given = dict(word.split("=", 1) for word in words[2:])
            assert given.keys() <= {"EXTRA", "LAUNCHER"}
            if words[1] not in ("bench", "gpu"):  # their settings are in files of their own
                compose(shlex.split(given.get("EXTRA", "")), table, monkeypatch)
        elif words[0].endswith("irattack"):
            name = words[1] if "=" not in words[1] and words[1][0] != "-" else "run"
            assert name in COMMANDS, words
            table = ""
            if COMMANDS[name].arguments.startswith("TABLE"):
                table = words[2]
                own = [ROOT / word.partition("=")[2] for word in words if "--config-dir=" in word]
                known = tables | {path.stem for one in own for path in one.glob("table/*")}
                assert table in known, words
            compose(words[1:], table, monkeypatch)
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), words
        else:
            raise AssertionError(f"{text.name}: what does {words} do?")


def test_the_python_of_the_docs_runs() -> None:
    (code,) = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "docs/api.md").read_text())
    for large, small in (("[::40]", "[::120]"), ("steps=10", "steps=2"), ("grid=8", "grid=4")):
        assert large in code
        code = code.replace(large, small)
    names: dict[str, Any] = {}
    exec(code, names)
    assert 0 <= names["rate"] <= 1
    assert 0 < len(names["x"]) < 6
    assert names["inside"].shape == names["y"].shape == (len(names["x"]),)


def test_brackets_are_quoted_for_every_shell() -> None:
    """Outside quotes, zsh takes them for a pattern of file names, and stops."""
    texts = [*TEXTS, conf.CONF / "config.yaml", *(ROOT / "irattack/commands").glob("*.py")]
    for path in texts:
        text = path.read_text("utf-8")
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        text = re.sub(r"(?s)```(python|yaml|diff)\n.*?```", "", text)
        text = re.sub(r'EXTRA="[^"]*"', "", text)
        assert re.findall(r"(?<![\w.+~'])[+~]*[a-z][\w.]*=\[.*", text) == [], path.name


def test_the_picture_and_the_headline_are_of_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import picture

    data = pd.read_csv(ROOT / "docs/picture.csv")
    readme = (ROOT / "README.md").read_text()
    for _, gains in data.groupby(["where", "norm"]):
        said = f"{(gains.gain > 0).sum()} of {len(gains)}"
        assert re.search(
            rf"\|[^|]*\b{said}\b[^|]*{re.escape(f'{gains.gain.mean():+.1f}')}", readme
        ), said
    one = data[data["where"] != picture.PAPER]
    table = one.assign(attack="ir", over="pgd", paper_gain=float("nan"))
    table.to_csv(tmp_path / "gain.csv", index=False)
    monkeypatch.setattr(picture, "DOCS", tmp_path)
    picture.main([f"mine={tmp_path / 'gain.csv'}"])
    drawn = pd.read_csv(tmp_path / "picture.csv")
    assert drawn.gain.tolist() == one.gain.tolist()
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text()
    assert [reference["year"] for reference in citation["references"]] == [2021]


def test_commits_that_pages_name_are_in_the_history() -> None:
    """A reader can look at the code that made a number."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)

    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("this is no whole clone of the repository")
    text = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    named = {word for word in re.findall(r"\b[0-9a-f]{7}\b", text) if not word.isdigit()}
    assert len(named) > 10
    ours = {
        name for name in named if not git("merge-base", "--is-ancestor", name, "HEAD").returncode
    }
    assert named == ours
