"""The HTML report in a real browser, Debian's chromium: it renders, sorts, filters, and fetches nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from tiny_run import make_tiny_run

from hf_ar2.collections import Collection
from hf_ar2.evaluation.runs import run_file
from hf_ar2.report.page import read_runs, render_page
from hf_ar2.report.page.page import page_data, page_of

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra 'dev'")

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
# Markup, quotes, both line separators, a template literal's end, a character beyond 16 bits.
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
HOSTILE += "\" ' & \u2028 \u2029 ${1} ` 𝒳"


@dataclass
class Opened:
    """A page, and what it asked for and complained of."""

    page: sync_api.Page
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def part(self, name: str) -> sync_api.Page:
        self.page.evaluate("name => { location.hash = name }", name)
        self.page.wait_for_selector(f"#{name.split('/')[0]}:not([hidden])")
        return self.page

    def listed(self) -> list[str]:
        """Changes of the queries in the list, from the top."""
        texts = self.page.locator("#list .row .delta").all_inner_texts()
        return [text.replace("−", "-") for text in texts]


@pytest.fixture(scope="module")
def chromium() -> Iterator[sync_api.Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        missing = f"no browser found ({', '.join(names)}); install Debian's: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: sync_api.Browser, tmp_path: Path) -> Iterator:
    """Opens a page from a file; afterwards it must have asked for nothing else, and complained of nothing."""
    opened: list[Opened] = []

    def open_(html: str, **context: object) -> Opened:
        path = tmp_path / f"report-{len(opened)}.html"
        path.write_text(html, encoding="utf-8")
        page = chromium.new_context(**context).new_page()
        found = Opened(page, path.as_uri())
        opened.append(found)

        def intercept(route: sync_api.Route) -> None:
            found.requests.append(route.request.url)
            route.continue_() if route.request.url.startswith("file:") else route.abort()

        page.route("**/*", intercept)
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.goto(found.address)
        page.wait_for_selector("#status", state="hidden")
        return found

    yield open_
    for found in opened:
        found.page.context.close()
        assert not found.complaints
        assert {request.partition("#")[0] for request in found.requests} == {found.address}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_collection: Collection) -> Path:
    return make_tiny_run(tmp_path_factory.mktemp("runs") / "tiny", "unused", tiny_collection)


@pytest.fixture(scope="module")
def html(run: Path, tiny_collection: Collection) -> str:
    return render_page(read_runs([run]), tiny_collection)


@pytest.fixture(scope="module")
def values(run: Path, tiny_collection: Collection) -> list[np.ndarray]:
    """MRR@10 of the queries, for each system."""
    data = page_data(read_runs([run]), tiny_collection)
    return [system["values"]["mrr@10"] for system in data["browser"]["systems"]]


def test_the_results_say_what_was_gained(open_page, html: str, values: list[np.ndarray]) -> None:
    page = open_page(html).page
    shown = page.locator("#results .hero").inner_text()
    numbers = [float(number) for number in re.findall(r"\d\.\d{3}", shown)]
    for row in (0, 3):  # a half is rounded one way in Python and another in the browser
        assert min(abs(number - values[row].mean()) for number in numbers) <= 0.000501
    better = int((values[3] > values[0]).sum())
    assert f"▲ {better} better" in shown
    assert page.locator("#results table").first.locator("tbody tr").all_inner_texts()[2].startswith("AR2")
    assert page.locator("#results .chart svg circle").count() >= 3
    # A cell of the matrix, row over column, is compared everywhere.
    page.get_by_role("button", name=re.compile(r"^.0\.\d+")).nth(0).click()
    assert page.locator("#before").input_value() == "1" and page.locator("#after").input_value() == "0"
    page.locator("#swap").click()
    assert f"{values[1].mean() - values[0].mean():+.3f}" in page.locator("#results .change").inner_text()


def test_a_hybrid_is_named_and_long_names_are_cut_visibly(
    open_page, tiny_collection: Collection, tmp_path: Path
) -> None:
    name = "hard-negatives-of-the-second-round-with-distillation"
    lifts = {"zero-shot": (0.0, False), name: (0.5, False)}
    run = make_tiny_run(tmp_path / "run", "unused", tiny_collection, lifts=lifts)
    shutil.copy(run_file(run, name, "test", "retriever"), run_file(run, name, "test", "hybrid"))
    chosen = {"row": name, "system": "hybrid", "reason": "it is best."}
    (run / "chosen.json").write_text(json.dumps(chosen))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics[name]["test"]["hybrid"] = metrics[name]["test"]["retriever"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = open_page(render_page(read_runs([run]), tiny_collection)).page
    assert page.locator("#results .names").inner_text().endswith(f"{name} · retriever + BM25")
    table = page.locator("#results table").first
    assert table.locator("th.group").all_inner_texts() == ["retriever", "retriever + BM25"]
    assert table.locator("tbody th").last.inner_text() == f"{name} (retriever + BM25 served)"
    label = page.locator("#results .chart svg text.label").nth(1)
    shown, whole = label.evaluate("node => [node.firstChild.data, node.querySelector('title').textContent]")
    assert shown.endswith("…") and name.startswith(shown[:-1]) and whole == name
    assert label.bounding_box()["x"] >= page.locator("#results .chart svg").first.bounding_box()["x"]


def test_what_was_tested_stands_under_its_own_metric(
    open_page, tiny_collection: Collection, tmp_path: Path
) -> None:
    runs = [make_tiny_run(tmp_path / name, "unused", tiny_collection, name=name) for name in "ab"]
    tests = json.loads((runs[1] / "significance.json").read_text())["tests"]
    (runs[1] / "significance.json").write_text(json.dumps({"metric": "ndcg@10", "tests": tests}))
    page = open_page(render_page(read_runs(runs), tiny_collection)).page
    for metric, label in (("MRR@10", "a"), ("nDCG@10", "b")):
        table = page.locator(".card", has=page.get_by_text(f"What each stage changed, {metric}", exact=True))
        rows = table.locator("tbody th").all_inner_texts()
        assert len(rows) == 5 and all(row.startswith(f"{label} · ") for row in rows)


def test_better_queries_are_a_click_away(open_page, html: str, values: list[np.ndarray]) -> None:
    opened = open_page(html)
    opened.page.locator("#results .counts .gain").click()
    opened.page.wait_for_selector("#queries:not([hidden])")
    assert len(opened.listed()) == int((values[3] > values[0]).sum())


def test_queries_are_sorted_by_gain_and_by_loss(open_page, html: str, values: list[np.ndarray]) -> None:
    opened = open_page(html)
    page = opened.part("queries")
    change = np.sort(values[3].astype(float) - values[0])
    expected = [float(f"{value:.3f}") for value in change]
    assert [float(text) for text in opened.listed()] == expected[::-1]
    page.select_option("#order", "loss")
    assert [float(text) for text in opened.listed()] == expected
    page.select_option("#after", "0")
    assert opened.listed() == ["0.000"] * 8


def test_a_search_and_a_filter_leave_the_queries_that_fit(
    open_page, html: str, values: list[np.ndarray], tiny_collection: Collection
) -> None:
    opened = open_page(html)
    page = opened.part("queries")
    page.locator("#swap").click()  # what was gained is lost
    page.locator(".chip[data-kind=loss]").click()
    worse = np.sort((values[0].astype(float) - values[3])[values[0] < values[3]])
    assert opened.listed() == [f"{value:.3f}" for value in worse] and len(worse) > 0
    page.locator(".chip[data-kind=all]").click()
    wanted = tiny_collection.queries[34]
    page.locator("#search").fill(wanted["id"].upper())
    assert page.locator("#list .row .text").all_inner_texts() == [wanted["text"]]
    assert page.locator("#detail h2").inner_text() == wanted["text"]
    page.locator("#search").fill("no such words")
    assert page.locator("#list .row").count() == 0
    assert "No query matches" in page.locator("#detail").inner_text()


def test_positives_are_marked_and_both_scores_shown(
    open_page, html: str, run: Path, tiny_collection: Collection
) -> None:
    data = page_data(read_runs([run]), tiny_collection)["browser"]
    opened = open_page(html)
    for number, id in enumerate(data["queries"]["id"]):
        page = opened.part(f"queries/{id}")
        assert page.locator("#detail .eyebrow").first.inner_text() == f"Query {id}"
        for side, system in enumerate((data["systems"][0], data["systems"][3])):
            hits = page.locator(".ranking").nth(side).locator(".hit")
            marked = [bool(hit.locator(".badge").count()) for hit in hits.all()]
            assert marked == (system["relevance"][number] > 0).tolist()
            top = [data["passages"]["id"][place] for place in system["top"][number]]
            assert hits.locator("code").all_inner_texts() == top
        scores = page.locator(".ranking").nth(1).locator(".hit").first.locator(".scores").inner_text()
        assert "retriever" in scores and "ranker" in scores
    # Of the ranker's scores the zero-shot row has none.
    assert page.locator(".ranking").nth(0).get_by_text("ranker", exact=True).count() == 0


def test_a_typed_address_may_hold_a_bare_percent_sign(
    open_page, run: Path, tiny_collection: Collection
) -> None:
    data = page_data(read_runs([run]), tiny_collection)
    data["browser"]["queries"]["id"][3] = "100%"
    opened = open_page(page_of(data))
    for address in ("queries/100%", "queries/100%25"):
        page = opened.part(address)
        assert page.locator("#detail .eyebrow").first.inner_text() == "Query 100%"
        page.keyboard.press("Home")


def test_the_list_is_worked_by_keyboard(open_page, html: str) -> None:
    opened = open_page(html)
    page = opened.part("queries")

    def selected() -> str | None:
        assert page.locator("#list .row[aria-selected=true]").count() == 1
        return page.locator("#list").get_attribute("aria-activedescendant")

    assert selected() == "q-0"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("ArrowDown")
    assert selected() == "q-1"
    page.keyboard.press("End")
    assert selected() == "q-7"
    page.keyboard.press("k")
    assert selected() == "q-6"
    shown = page.locator("#list .row[aria-selected=true] .text").inner_text()
    assert page.locator("#detail h2").inner_text() == shown


def test_a_run_of_one_row_is_shown_without_a_comparison(
    open_page, tiny_collection: Collection, tmp_path: Path
) -> None:
    run = make_tiny_run(tmp_path / "run", "unused", tiny_collection, lifts={"only": (0.5, False)})
    opened = open_page(render_page(read_runs([run]), tiny_collection))
    shown = opened.page.locator("main").inner_text()
    assert "only · retriever" in shown
    assert not any(word in shown for word in ("→", "null", "NaN", "undefined", "What each stage changed"))
    assert not opened.page.locator("#pair").is_visible()
    assert opened.part("queries").locator("#list .row").count() == 8


def test_training_and_setup_are_drawn(open_page, html: str) -> None:
    opened = open_page(html)
    page = opened.part("training")
    assert page.locator("#training figcaption").all_inner_texts() == [
        "MRR@10 per round, on held-out queries",
        "Losses",
        "Pool difficulty",
        "Time per stage, 20 s in all",
    ]
    assert page.locator("#training figure").nth(1).locator("svg.c-blue").count() == 1
    assert "refresh\nranker\nretriever\nother work" in page.locator("#training").inner_text()
    page = opened.part("setup")
    assert "torch" in page.locator("#setup").inner_text()
    assert "name: tiny" in page.locator(".recipe").inner_text()


def test_rounds_are_counted_from_the_beginning_of_their_stage(
    open_page, tiny_collection: Collection, tmp_path: Path
) -> None:
    run = make_tiny_run(tmp_path / "run", "unused", tiny_collection)
    log = [{"epoch": 0.17, "step": 3, "ranker_accuracy": 0.25}]
    (run / "stages" / "retriever" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    page = open_page(render_page(read_runs([run]), tiny_collection)).part("training")
    pool = page.locator("#training figure").nth(2)
    assert pool.locator("svg[role=img] text[text-anchor=middle].tick:not(.stage)").all_text_contents() == [
        "0",
        "0",
        "1",
    ]
    box = pool.locator("svg[role=img]").bounding_box()
    for share, expected in ((0.1, "retriever, round 0.17"), (0.6, "ar2, round 0")):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        assert pool.locator(".tip").inner_text().startswith(expected)


def test_hostile_texts_are_shown_as_texts(open_page, tiny_collection: Collection, tmp_path: Path) -> None:
    collection = dataclasses.replace(
        tiny_collection,
        name=HOSTILE,
        corpus=Dataset.from_list([{**r, "title": HOSTILE, "text": HOSTILE} for r in tiny_collection.corpus]),
        queries=Dataset.from_list([{**r, "text": HOSTILE} for r in tiny_collection.queries]),
    )
    run = make_tiny_run(tmp_path / "run", "unused", collection, name=HOSTILE)
    opened = open_page(render_page(read_runs([run]), collection))
    assert opened.page.locator("h1").text_content() == HOSTILE
    page = opened.part("queries")
    for place in ("#detail h2", "#list .row .text", ".hit .title b", ".hit .text"):
        assert page.locator(place).first.text_content() == HOSTILE
    for part in ("training", "setup", "results"):
        opened.part(part)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    # Even a script that someone wrote into the page would not run.
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 3'}))"
    )
    assert page.evaluate("window.hacked") is None
    assert len(opened.complaints) == 1 and "Content Security Policy" in opened.complaints.pop()


@pytest.fixture(scope="module")
def large() -> Collection:
    """10,000 queries, each with a positive of its own."""
    number = 10_000
    features = Features(query_id=Value("string"), passage_id=Value("string"), relevance=Value("int32"))
    ids, passages = [f"q{i}" for i in range(number)], [f"p{i}" for i in range(number)]
    texts = [f"what is number {i} good for" for i in range(number)]
    return Collection(
        name="large",
        corpus=Dataset.from_dict({"id": passages, "title": [""] * number, "text": texts}),
        queries=Dataset.from_dict({"id": ids, "text": texts}),
        qrels={
            "test": Dataset.from_dict(
                {"query_id": ids, "passage_id": passages, "relevance": [1] * number}, features=features
            )
        },
    )


def test_ten_thousand_queries_stay_usable(open_page, large: Collection, tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "run", "unused", large, depth=10)
    data = page_data(read_runs([run]), large)
    opened = open_page(page_of(data))
    page = opened.part("queries")

    def nodes() -> int:
        return page.evaluate("document.querySelectorAll('*').length")

    assert page.locator("#queries .summary").inner_text() == "10,000 queries"
    assert 5 < page.locator("#list .row").count() < 40
    assert nodes() < 1_500
    page.locator("#list").focus()
    page.keyboard.press("End")
    page.wait_for_selector("#q-9999")
    assert page.locator("#q-9999").get_attribute("aria-selected") == "true"
    assert page.locator("#list .row").count() < 40 and nodes() < 1_500
    page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight / 2 }")
    page.wait_for_selector("#q-5000")
    assert page.locator("#list .row").count() < 40
    page.locator("#search").fill("number 7777 ")
    assert page.locator("#list .row .text").all_inner_texts() == ["what is number 7777 good for"]
    assert page.locator("#queries .summary").inner_text() == "1 of 10,000 queries"
    assert page.locator("#detail .hit").count() == 20
    assert nodes() < 1_500


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colour_scheme_and_narrow_windows(open_page, html: str, scheme: str) -> None:
    opened = open_page(html, color_scheme=scheme, viewport={"width": 400, "height": 800})
    page = opened.part("queries")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background))) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60
    # One ranking at a time, and nothing wider than the window.
    assert [page.locator(".ranking").nth(side).is_visible() for side in (0, 1)] == [False, True]
    page.get_by_role("button", name="Before", exact=True).click()
    assert [page.locator(".ranking").nth(side).is_visible() for side in (0, 1)] == [True, False]
    for part in ("queries", "results", "training", "setup"):
        opened.part(part)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, part
