"""The report of a few tiny cells, opened in a headless browser and compared with the CSV files."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra

from irattack.commands import composing, plans, report, reproduce, status
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.pipeline import statistics
from irattack.results import headline, paper, record, tables
from irattack.results.names import method_name, title
from irattack.results.report import build

SMALL = [
    *("images=16", "steps=3", "samples=2", "grid=4", "cells=3", "threads=1", "source=resnet34"),
    *("attack=pgd,ir", "targets=[vgg16,resnet152]"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results: Table 1 and Figure 7, made small, and the report of them."""
    output = tmp_path_factory.mktemp("outputs")
    register_resolvers()
    for name in ("table1", "fig7"):
        with composing.hydra():
            table = plans.plan(name, [*SMALL, f"output={output}"])
        try:
            reproduce.reproduce(table, [], aggregate=False)
        finally:
            GlobalHydra.instance().clear()
    assert report.write([f"output={output}"]) == output / "photos/report/index.html"
    return output / "photos"


def test_what_a_table_was_made_of_is_not_cleaned_away(root: Path) -> None:
    register_resolvers()
    with composing.hydra():  # of other settings, whose own steps are not there
        others = {"table4": plans.plan("table4", [f"output={root.parent}"])}
    steps = sorted(path for path in root.rglob("*.b2"))
    assert steps
    odd = root.parent.parent / "it's (1), a=b"  # Hydra would not take such a path as it is
    shutil.copytree(root, odd / "photos", symlinks=True)
    folders = {path.name for path in (root / "steps").iterdir()}
    assert folders <= {path.name for path in status.made(odd / "photos")}
    foreign = root / "steps/of-no-table"
    foreign.mkdir()
    assert "Removed 1 of" in status.cleaned(others)
    assert sorted(root.rglob("*.b2")) == steps
    assert not foreign.exists()


def csv(root: Path, suffix: str = "") -> pd.DataFrame:
    (path,) = (path for path in (root / "tables").glob(f"*{suffix}.csv"))
    return pd.read_csv(path)


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[Any]:
    """The report in a browser, and at the end neither an error nor a request to the network."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; its Debian package has that name")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(f"asks for {request.url[:99]}"))
        page.goto((root / "report/index.html").as_uri())
        page.wait_for_selector(".chart svg")
        yield page
        assert [text for text in said if not re.match("asks for (file|data):", text)] == []
        browser.close()


def column(page: Any, number: int, table: int = 0) -> list[float]:
    """The numbers of a column of a table, as the reader sees them, from the top."""
    body = page.locator("table.data").nth(table).locator("tbody tr")
    cells = [row.locator("th, td").nth(number) for row in body.all()]
    return [float(cell.evaluate("cell => cell.firstChild.textContent")) for cell in cells]


def test_numbers_are_those_of_the_csv(page: Any, root: Path) -> None:
    rates = csv(root, "vgg16_resnet152_")
    for table, norm in enumerate(("linf", "l2")):
        part = rates[rates.norm == norm]
        for number, target in enumerate(("vgg16", "resnet152"), start=2):
            expected = part[part.target == target].success_rate_percent
            assert column(page, number, table) == pytest.approx([*expected], abs=0.06)
        text = page.locator("table.data").nth(table).inner_text()
        for row in part.itertuples():
            assert f"{row.ci_low:.0f}–{row.ci_high:.0f}" in text
            assert f"p {row.paper_percent:.1f}" in text


def test_a_head_sorts(page: Any) -> None:
    table = page.locator("table.data").first
    numbers, head = column(page, 2), table.locator("thead th").nth(2)
    for order, reverse in (("descending", True), ("ascending", False)):
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        assert column(page, 2) == sorted(numbers, reverse=reverse)
    assert table.locator("[aria-sort]").count() == 1


def test_cells_are_shaded_by_gain(page: Any, root: Path) -> None:
    gains = csv(root, "_gain")
    for table, norm in enumerate(("linf", "l2")):
        row = page.locator("table.data").nth(table).locator("tbody tr", has_text="IR").first
        for number, target in enumerate(("vgg16", "resnet152")):
            gain = float(gains[(gains.norm == norm) & (gains.target == target)].gain.iloc[0])
            kind = row.locator("td").nth(number).get_attribute("class")
            assert kind == (None if gain == 0 else "more" if gain > 0 else "less")


def test_small_print_is_shown_and_hidden(page: Any) -> None:
    box = page.locator("[data-shows=gain]").first
    gain = page.locator("table.data").first.locator("small.gain").first
    for shown in (False, True, False):
        assert gain.is_visible() == shown
        box.click()
    box.click()


def test_a_chart_shows_the_chosen_panel(page: Any, root: Path) -> None:
    choice = page.locator(".chart select")
    data = pd.read_csv(next((root / "figures").glob("*.csv")))
    assert choice.locator("option").all_inner_texts() == ["RN-34 → VGG-16", "RN-34 → RN-152"]
    for target in ("vgg16", "resnet152"):
        choice.select_option(f"RN-34 → {title(target)}")
        part = data[(data.target == target) & (data.step == data.chosen_step)]
        labels = page.locator(".chart svg [aria-roledescription=point]").evaluate_all(
            "marks => marks.map(mark => mark.getAttribute('aria-label'))"
        )
        for row in part.itertuples():
            what = f"step: {row.step}; success rate (%): {row.success_rate_percent:g}"
            assert any(what in text and method_name(row.attack) in text for text in labels)


def test_it_fits_a_phone_and_says_what_pictures_show(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(image.get_attribute("alt") for image in page.locator("img").all())
    assert page.locator("thead th:not([scope=col])").count() == 0
    assert page.locator("tbody th:not([scope=row])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    links = page.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.hash)")
    assert len(ids) == len({*ids})
    assert {link[1:] for link in links} <= {*ids}


def test_a_wide_figure_stays_readable_on_a_phone(page: Any) -> None:
    """It scrolls in its own box, where it would be shrunk to small print."""
    inches, least = 7, 90  # four panels; pixels an inch at which their 7 points can be read
    picture, box, whole = page.locator("figure img").first.evaluate(
        """(image, inches) => {
            const before = image.getAttribute("style");
            image.style.setProperty("--inches", inches);
            const root = document.documentElement;
            const widths = [image.clientWidth, image.parentElement.clientWidth, root.scrollWidth];
            image.setAttribute("style", before);
            return widths;
        }""",
        inches,
    )
    assert picture >= least * inches
    assert box <= whole <= 390


def test_on_paper_stands_what_a_click_would_show(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    try:
        for what in (".chart", "summary", "nav", "fieldset.show"):
            assert not page.locator(what).first.is_visible()
        assert page.locator("figure img").first.is_visible()
        assert page.locator("details dl").first.is_visible()
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(255, 255, 255)"
    finally:
        page.emulate_media(media="screen", color_scheme="light")
    assert page.locator(".chart").first.is_visible()
    assert not page.locator("details dl").first.is_visible()


def test_the_page_names_what_is_missing_and_what_it_was_made_with(root: Path) -> None:
    text = (root / "report/index.html").read_text("utf-8")
    for name in plans.definitions():  # table1 and fig7 were made in part
        assert text.count(f"make reproduce-{name}<") >= 1
    for one in record.read(root):
        assert not report.whole(one)
        assert report.whole(one.model_copy(update={"kept": ["benchmark=imagenet", "lam=1"]}))
        assert not any("[" in fact for run in one.made_with for fact in run.values())
        assert {run["commit"] for run in one.made_with} <= {*re.findall(r"<dd>(\w+\+?)</dd>", text)}
        assert one.settings["steps"] == "3"
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:|#)', markup)


def test_claims_are_means_over_pairs(root: Path) -> None:
    gains = csv(root, "_gain")
    (one,) = (found for found in record.read(root) if found.name == "table1")
    for claim, norm in zip(one.claims, ("linf", "l2"), strict=True):
        part = gains[gains.norm == norm]
        assert claim.mean == pytest.approx(part.gain.mean(), abs=1e-3)
        counts = [(part.gain > 0).sum(), len(part), (part.ci_low > 0).sum()]
        assert [claim.higher, claim.of, claim.above] == counts
        assert claim.paper is not None
        assert claim.paper.mean == pytest.approx(part.paper_gain.mean())


def test_what_changed_on_the_disk_is_left_out(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(root, tmp_path / "photos")
    (path,) = (copy / "tables").glob("*_gain.csv")
    path.write_text(path.read_text().replace("vgg16", "vgg19"))
    assert [one.name for one in record.read(copy)] == ["fig7"]
    assert f"{path.name} missing or changed" in caplog.text
    assert "make reproduce-table1 EXTRA=" in caplog.text


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no table or figure is in .*make reproduce-table1"):
        report.write([f"output={tmp_path}"])
    with pytest.raises(InputError, match="steps=3 has no effect"):
        report.write(["steps=3"])


def test_everything_is_escaped(root: Path) -> None:
    one = record.read(root)[1].model_copy(update={"title": "<script>alert(1)</script>"})
    page = build.render(build.Report("<b>", [build.Entry(one, root)], []))
    assert "<script>alert" not in page
    assert "<b><b></b>" not in page


def test_the_papers_numbers_for_claims() -> None:
    """Of all pairs of Tables 1 and 3, by a plain loop over the rows."""
    rates = {
        (row.attack, row.norm, row.source, row.target): row.paper_percent
        for row in paper.rates(3).itertuples()
    }
    pairs = {key[2:] for key in rates if key[0] == "hybridir"}
    others = ("mi", "vr", "sgm", "sgmir")
    gains = [
        rates["hybridir", "linf", *pair]
        - max(rates.get((other, "linf", *pair), 0) for other in others)
        for pair in pairs
    ]
    found = headline.printed({"more": "hybridir", "norm": "linf"}, 3)
    assert found is not None
    assert (found.higher, found.of) == (sum(gain > 0 for gain in gains), len(pairs))
    assert found.mean == pytest.approx(np.mean(gains))
    interactions = headline.printed({"more": "pgd"}, 4)
    assert interactions is not None
    assert interactions.mean == pytest.approx((0.422 + 0.926 + 0.909 + 0.784) / 4)


def test_a_verdict_is_where_the_interval_lies() -> None:
    def verdict(mean: float, low: float, high: float) -> str:
        where = (mean, low, high)
        return headline.judge({"says": ""}, "points", where, [where]).verdict

    assert verdict(2, 1, 3) == "holds"
    assert verdict(2, -1, 3) == verdict(1, float("nan"), float("nan")) == "undecided"
    assert verdict(-2, -3, -1) == "does not hold"
    unlucky = (-2, -3, -1)  # as gains over the best of several equal attacks are
    judged = headline.judge({"says": ""}, "points", unlucky, [unlucky], over_best=True)
    assert judged.verdict == "undecided"


def test_a_claim_against_the_best_of_the_others(root: Path) -> None:
    register_resolvers()
    with composing.hydra():
        one = plans.plan("table1", [*SMALL, f"output={root.parent}"])
    alone = tables.judge(one.cells, {"says": "", "more": "ir", "less": "pgd", "norm": "linf"}, 1)
    best = tables.judge(one.cells, {"says": "", "more": "ir", "norm": "linf"}, 1)
    assert alone == best  # PGD is the only other
    assert best is not None
    assert not best.over_best
    assert tables.judge(one.cells, {"says": "", "more": "mi", "norm": "linf"}, 1) is None
    fewer = tables.judge(one.cells, {"says": "", "more": "ir", "norm": "linf"}, 3)
    assert fewer is None  # the paper's Table 3 has rivals that are not there


def test_mean_gain_is_of_each_images_mean_difference() -> None:
    draw = np.random.default_rng(0)
    pairs = [(draw.random((4, 60)) < 0.5, draw.random((4, 60)) < 0.3) for _ in range(3)]
    (mean, low, high), each = statistics.mean_gain(pairs)
    assert each == [statistics.gain(*pair) for pair in pairs]
    assert mean == pytest.approx(np.mean([value for value, *_ in each]))
    copies = statistics.resamples(60)
    of_image = lambda c: np.mean(  # noqa: E731
        [1.0 * statistics.leave_one_out(a, c) - statistics.leave_one_out(b, c) for a, b in pairs], 0
    )
    d = statistics.design_effect(of_image(copies), copies)
    score = of_image(np.ones((1, 60), np.float32))[0]
    n = 60 / d + 2
    centre = score.sum() / d / n
    half = statistics.Z * ((((score**2).sum() / d + 1) / n - centre**2) / n) ** 0.5
    assert (low, high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-3)


def test_charts_are_specifications_that_vega_lite_compiles() -> None:
    import vl_convert

    rows = {"source": ["resnet34"] * 4, "target": ["vgg16"] * 4, "n": 9, "p": 2}
    c = {"c": [0, 1, 2, 3], "interaction": [1, 2, 3, 5], "transfer_utility": [4, 3, 2, 0]}
    lam = {"lam": [0, 0.5, 1, 2], "success_rate_percent": [3, 4, 6, 5], "ci_low": 2, "ci_high": 9}
    for more in (c, lam):
        spec = build.charts.of_frame("x", pd.DataFrame(rows | more))
        assert spec is not None
        vega = vl_convert.vegalite_to_vega(json.dumps(spec))
        assert vega["description"] == "x"
        if "lam" in more:
            assert ">0.5<" in vl_convert.vegalite_to_svg(spec)  # λ, not rounded
    assert build.charts.of_frame("x", pd.DataFrame(rows)) is None
