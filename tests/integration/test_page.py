"""The page of `runtap serve` in a real browser: it shows the figures of the report, and texts of events do nothing."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import msgspec
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

from partition_setting import WorkerTools
from runtap_consumers.figures import words
from runtap_consumers.store import tables
from runtap_consumers.store.engine import open_store
from runtap_schemas import RunError, Usage
from samples import (
    SECOND_NS,
    START_NS,
    Log,
    alert_row,
    an_alert,
    chain_end,
    failure,
    model_call,
    report,
    session_start,
    unreadable,
)
from serve_process import Server, served

pytestmark = pytest.mark.timeout(400)
VIEWS = ("overview", "costs", "performance", "errors", "sessions", "traces", "alerts", "pipeline")
RANGE = "since=2026-03-02&until=2026-03-03"
TRACE_RUNS = 1_000
CONTENT_SECURITY = "content-security-policy"


def missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        # The sandbox wants rights that containers do not give; only pages of our own are opened.
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def serving(url: str, fill: Callable[[WorkerTools], None], **variables: str) -> Iterator[Server]:
    with closing(open_store(url, "runtap.events", "UTC")) as store:
        tools = WorkerTools(store)
        fill(tools)
        tools.close()
    with served(url, **variables) as server:
        yield server


def fill_with_ordinary_runs(tools: WorkerTools) -> None:
    """Two days of two models, a session with an error, a trace of a thousand runs, a dead letter and an alert."""
    log, number = Log(), itertools.count(1)

    def add(event: Any) -> None:
        log.append(event, "e", next(number))

    for day, hour in itertools.product(range(2), range(4)):
        at_ns = START_NS + (day * 24 + hour) * 3_600 * SECOND_NS
        of: dict[str, Any] = {"trace_id": f"t-{day}-{hour}", "session_id": f"s-{day}", "user_id": "ann"}
        add(session_start(at_ns - 4 * SECOND_NS, f"s-{day}"))
        content: dict[str, Any] = {
            "inputs": msgspec.Raw(b'{"question":"where is my order?"}'),
            "outputs": msgspec.Raw(b'{"answer":"on its way"}'),
        }
        add(model_call(at_ns, run_id=f"call-{day}-{hour}", parent_run_id=f"root-{day}-{hour}", **of, **content))
        own: dict[str, Any] = dict.fromkeys(("model", "request_model"), "house-7b") | {"provider": "house"}
        add(model_call(at_ns, run_id=f"own-{day}-{hour}", parent_run_id=f"root-{day}-{hour}", **of, **own))
        failed: dict[str, Any] = {"status": "error", "error": failure()} if hour == 3 else {}
        add(chain_end(at_ns, run_id=f"root-{day}-{hour}", name="answer", **of, **failed))
    at_ns = START_NS + 20 * SECOND_NS
    for place in range(1, TRACE_RUNS):
        of = {"trace_id": "wide", "parent_run_id": "wide-0"}
        small = Usage(input_tokens=10, output_tokens=1)
        times: dict[str, Any] = {"started_at_ns": at_ns + place * 10**6, "duration_ns": 10**7}
        add(model_call(at_ns + SECOND_NS, run_id=f"wide-{place}", usage=small, **of, **times))
    add(chain_end(at_ns + 2 * SECOND_NS, run_id="wide-0", trace_id="wide", name="wide", duration_ns=2 * SECOND_NS))
    add(report(START_NS + 27 * 3_600 * SECOND_NS))
    log.append_value(unreadable("e", next(number)), START_NS)
    tools.apply(log)
    add_alert(tools, "checkout", "checkout: 1 of 4 root runs failed")


def add_alert(tools: WorkerTools, service: str, summary: str) -> None:
    alert = an_alert(id=summary[:300], group={"service": service}, summary=summary)
    with tools.store.engine.begin() as connection:
        connection.execute(tables.alert_outbox.insert().values(**alert_row(alert, START_NS)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    url = f"sqlite:///{tmp_path_factory.mktemp('page') / 'runtap.db'}"
    with serving(url, fill_with_ordinary_runs) as opened:
        yield opened


@contextmanager
def a_page(browser: Browser, server: Server, complaints: list[str] | None = None, **options: Any) -> Iterator[Page]:
    """A tab whose complaints (errors, policy reports, requests that fail) are added to a list."""
    viewport = {"width": 1280, "height": 800}
    context = browser.new_context(
        **{"locale": "en-US", "timezone_id": "America/New_York", "viewport": viewport, **options},
        base_url=f"http://127.0.0.1:{server.port}",
    )
    found = [] if complaints is None else complaints
    page = context.new_page()
    page.set_default_timeout(60_000)

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            found.append(f"{message.type}: {message.text} in {page.url}")

    page.on("console", note)
    page.on("pageerror", lambda error: found.append(f"{error} in {page.url}"))
    page.on("requestfailed", lambda request: found.append(f"{request.failure}: {request.url}"))
    page.on("response", lambda answer: found.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    context.expose_function("violated", lambda text: found.append(f"policy: {text} in {page.url}"))
    context.add_init_script(
        "document.addEventListener('securitypolicyviolation',"
        " (event) => window.violated(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));"
    )
    try:
        yield page
    finally:
        context.close()


def show(page: Page, address: str) -> str:
    """Goes to an address within the page; its text."""
    if page.url == "about:blank":
        page.goto(f"/{address}")
    else:
        page.evaluate("(address) => { location.hash = address; }", address)
    page.wait_for_selector(f'main[data-shown="{address}"]:not(.waiting)')
    return page.inner_text("main")


def addresses() -> list[str]:
    return [
        *(f"#/{view}?{RANGE}" for view in VIEWS),
        f"#/costs?{RANGE}&by=user&by2=model",
        f"#/costs?{RANGE}&by=day",
        f"#/traces?{RANGE}&runs=all&model=house-7b",
        "#/session/s-0",
        "#/trace/call-0-1",
    ]


def test_every_view_in_both_languages_themes_and_widths_without_a_complaint(browser: Browser, server: Server) -> None:
    complaints: list[str] = []
    with a_page(browser, server, complaints) as page:
        show(page, f"#/overview?{RANGE}")
        # Each theme meets each language and each width, and each language each width.
        for language, theme, width in (
            ("en", "light", 1280),
            ("en", "dark", 390),
            ("zh-CN", "light", 390),
            ("zh-CN", "dark", 1280),
        ):
            page.set_viewport_size({"width": width, "height": 800})
            if page.get_attribute("html", "lang") != language:
                page.click("header button:text('中文'), header button:text('English')")
                page.wait_for_selector(f"html[lang={language}]")
            if page.evaluate("document.documentElement.dataset.theme ?? 'light'") != theme:
                page.click("header button:text('◐')")
            for address in addresses():
                text = show(page, address)
                where = (language, theme, width, address)
                assert len(text) > 40, where
                assert not re.search(r"\b(undefined|null|NaN|\[object)\b", text), where
                # Names of the store are English in both.
                assert bool(re.search("[\u4e00-\u9fff]", text)) is (language == "zh-CN"), where
                # Nothing is wider than the screen but what scrolls itself.
                assert page.evaluate("document.documentElement.scrollWidth") <= width, where
                for chart in page.locator(".u-over").all():
                    chart.hover(position={"x": 60, "y": 60})
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(re.findall(r"\d+", background)[0]) < 80) is (theme == "dark")
    assert complaints == []


def test_figures_are_those_of_the_report(browser: Browser, server: Server) -> None:
    found = server.get(f"report?{RANGE}")
    cost, calls = found["cost"], found["performance_by_run_type"]["llm"]
    with a_page(browser, server) as page:
        show(page, f"#/overview?{RANGE}")
        shown = page.locator(".card strong").all_inner_texts()
        failed, ended = found["errors"]["by_type"][0]["count"], 5
        assert shown == [
            words.money(cost["cost_usd"]),
            f"{cost['calls']:,}",
            f"{failed / ended:.1%}",
            words.duration(calls["p95_seconds"]),
            f"{cost['total_tokens']:,}",
            str(len(found["sessions"])),
        ]
        assert f"unpriced {cost['unpriced_calls']}" in page.inner_text("#status")
        assert f"lost {found['ledger']['lost']:,}" in page.inner_text("#status")
        # The reader's clock, New York's, five hours behind.
        assert "Complete to 03-03 08:00:00" in page.inner_text("#status")

        show(page, f"#/costs?{RANGE}&by=model")
        (house, mini), total = cells(page, "tbody")[1::-1], cells(page, "tfoot")[0]
        by_model = {row["model"]: row for row in cost["by_model"]}
        assert (house[0], house[1], house[4]) == ("house-7b", "–", str(by_model["house-7b"]["unpriced_calls"]))
        assert (mini[0], mini[1]) == ("gpt-4o-mini-2024-07-18", words.money(by_model[mini[0]]["cost_usd"]))
        assert (total[1], total[3]) == (words.money(cost["cost_usd"]), f"{cost['calls']:,}")
        # A day is the store's, whatever the reader's zone is, and says whose.
        show(page, "#/costs?since=2026-03-01&until=2026-03-05&by=day")
        assert [row[0] for row in cells(page, "tbody")] == ["2026-03-02 (UTC)", "2026-03-03 (UTC)"]
        page.click("tbody a")
        page.wait_for_selector("main[data-shown*='by=model']:not(.waiting)")
        assert cells(page, "tfoot")[0][1] == words.money(cost["cost_usd"])

        show(page, f"#/performance?{RANGE}&sort=total")
        for row, one in zip(cells(page, "tbody"), found["performance"], strict=True):
            assert row[1].split() == list(filter(None, (one["name"], one["model"])))
            assert (row[3], row[4]) == (words.duration(one["total_seconds"]), words.duration(one["p95_seconds"]))
            assert row[8] == f"{one['count']:,}"
        show(page, f"#/errors?{RANGE}")
        groups = found["errors"]["groups"]
        assert [int(row[0]) for row in cells(page, "tbody")[: len(groups)]] == [group["count"] for group in groups]
        show(page, f"#/sessions?{RANGE}")
        assert [(row[0], row[10]) for row in cells(page, "tbody")] == [
            (one["session_id"], words.money(one["cost_usd"])) for one in found["sessions"]
        ]
        show(page, f"#/alerts?{RANGE}")
        assert [row[3] for row in cells(page, "tbody")] == [alert["summary"] for alert in found["alerts"]]
        show(page, "#/pipeline")
        sums = page.locator(".figure strong").all_inner_texts()[:2]
        assert sums == [f"{found['ledger'][name]:,}" for name in ("captured", "applied")]


def cells(page: Page, part: str) -> list[list[str]]:
    """The texts of the first table's rows."""
    texts = "(part) => [...part.rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
    rows: list[list[str]] = page.locator(f"main {part}").first.evaluate(texts)
    return rows


def test_an_error_leads_to_its_trace_and_a_run_to_its_content(browser: Browser, server: Server) -> None:
    with a_page(browser, server) as page:
        show(page, f"#/errors?{RANGE}")
        page.click("td a:text-is('Trace')")
        page.wait_for_selector("main[data-shown^='#/trace/root-0-3']:not(.waiting) .waterfall")
        assert page.locator(".waterfall .failed").count() == 1
        page.click(".waterfall a:has-text('gpt-4o-mini')")
        page.wait_for_selector(".detail pre")
        assert "where is my order?" in page.inner_text(".detail")
        # The address is of what is shown.
        chosen = page.evaluate("location.hash")
        with a_page(browser, server) as another:
            show(another, chosen)
            assert "where is my order?" in another.inner_text(".detail")
        show(page, f"#/traces?{RANGE}")
        assert {row[3] for row in cells(page, "tbody")} == {"ok", "error ToolException"}
        page.fill(".search input", "call-0-1")
        page.press(".search input", "Enter")
        page.wait_for_selector("main[data-shown^='#/trace/call-0-1']:not(.waiting) .detail")


def test_everything_is_reached_by_keyboard(browser: Browser, server: Server) -> None:
    with a_page(browser, server) as page:
        show(page, f"#/sessions?{RANGE}")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        # The first stop skips the menu; what is shown stays.
        assert page.evaluate("document.activeElement.id") == "main"
        for _ in range(2):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("main[data-shown^='#/session/s-0']:not(.waiting)")
        page.focus("nav a:text('Traces')")
        page.keyboard.press("Enter")
        page.wait_for_selector("main[data-shown^='#/traces']:not(.waiting)")
        # What has the focus keeps it when the page is asked again.
        page.focus(".search input")
        page.keyboard.type("wide")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(500)
        page.keyboard.type("-0")
        page.keyboard.press("Enter")
        page.wait_for_selector("main[data-shown^='#/trace/wide-0']:not(.waiting)")


def test_what_is_not_there_or_wrong_says_what_to_do_next(browser: Browser, server: Server) -> None:
    with a_page(browser, server) as page:
        assert "no run or trace 'nobody'" in show(page, "#/trace/nobody")
        # What is always in sight still is.
        assert "Complete to" in page.inner_text("#status")
        page.click("a:text('Begin anew')")
        page.wait_for_selector("main[data-shown='#/traces']:not(.waiting)")
        assert "no time" in show(page, "#/costs?since=yesterday")
        assert "No session in this range" in show(page, "#/sessions?since=2020-01-01&until=2020-01-02")
        page.route("**/api/**", lambda route: route.abort())
        assert "The server does not answer" in show(page, "#/alerts")


def test_a_visible_tab_asks_with_its_etag_and_a_hidden_one_not_at_all(browser: Browser, server: Server) -> None:
    with a_page(browser, server) as page:
        page.clock.install()
        page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => window.isAway === true });")
        asked: list[tuple[str | None, int]] = []

        def note(answer: Any) -> None:
            if "/api/" in answer.url:
                asked.append((answer.request.headers.get("if-none-match"), answer.status))

        show(page, f"#/overview?{RANGE}")
        page.on("response", note)
        page.clock.run_for(5_100)
        page.wait_for_timeout(500)
        assert len(asked) == 4
        assert all(etag and status == 304 for etag, status in asked), asked
        turn = "(isAway) => { window.isAway = isAway; document.dispatchEvent(new Event('visibilitychange')); }"
        page.evaluate(turn, True)
        asked.clear()
        page.clock.run_for(60_000)
        page.wait_for_timeout(500)
        assert asked == []
        page.evaluate(turn, False)
        page.wait_for_timeout(500)
        assert len(asked) == 4


def test_the_token_is_asked_for_once_a_tab_and_an_empty_store_says_what_to_do_next(
    browser: Browser, tmp_path: Path
) -> None:
    url, complaints = f"sqlite:///{tmp_path / 'runtap.db'}", list[str]()
    with (
        serving(url, lambda _: None, RUNTAP_SERVE_TOKEN="let-me-in") as server,
        a_page(browser, server, complaints) as page,
    ):
        assert "This server wants its token" in show(page, "#/overview")
        for given, then in (("let-me-out", "That is not its token"), ("let-me-in", "runtap demo --keep")):
            page.fill("input[type=password]", given)
            page.press("input[type=password]", "Enter")
            page.wait_for_selector(f"text={then}")
        page.reload()
        page.wait_for_selector("text=Nothing here yet")
        assert page.locator("input[type=password]").count() == 0
        complaints.clear()
        for view, said in {
            "costs": "No model call",
            "performance": "Nothing ran",
            "errors": "Nothing broke",
            "sessions": "No session",
            "traces": "No run",
            "alerts": "No alert",
            "pipeline": "`runtap worker` starts one",
        }.items():
            assert said in show(page, f"#/{view}")
    assert complaints == []


def hostile_texts() -> list[str]:
    """300 texts that would do something if they were read as markup or as an address; none longer than an id may be."""
    before = ("", '"', "'", '">', "'>", "</a>", "</title>", "</script>", "-->", "]]>")
    doing = (
        "<img src=x onerror=fired()>",
        "<svg onload=fired()>",
        "<script>fired()</script>",
        "<iframe srcdoc='<script>top.fired()</script>'>",
        "<video><source onerror=fired()>",
        "<body onload=fired()>",
        "<input autofocus onfocus=fired()>",
        "javascript:fired()//",
        "<a href=javascript:fired()>x</a>",
        "<style onload=fired()>*{}</style>",
    )
    cases: tuple[Callable[[str], str], ...] = (
        str,
        lambda text: f"{text}&#39;",
        lambda text: re.sub(r"<\w+|javascript", lambda found: found[0].upper(), text),
    )
    found = [case(f"{first}{text}") for first, text, case in itertools.product(before, doing, cases)]
    assert len(set(found)) == 300
    assert max(map(len, found)) <= 64
    return found


def fill_with_hostile_texts(tools: WorkerTools) -> None:
    log, number = Log(), itertools.count(1)
    texts = hostile_texts()
    for place, text in enumerate(texts):
        at_ns = START_NS + place * SECOND_NS
        of: dict[str, Any] = {"service": text, "environment": text, "session_id": text, "user_id": text, "name": text}
        error = RunError(
            type=text, category="tool", message=text, fingerprint=f"f{place}", origin=True, code="x", raised_at=text
        )
        many: dict[str, Any] = {"tags": texts[place : place + 30], "metadata": {text: text, "team": text}}
        raw = msgspec.Raw(msgspec.json.encode({text: [text]}))
        models: dict[str, Any] = {"provider": text, "model": text, "request_model": text, "finish_reason": text}
        content: dict[str, Any] = {"inputs": raw, "outputs": raw}
        of |= {"trace_id": "t", **many}
        call = model_call(at_ns, run_id=text, parent_run_id=f"root-{place}", **of, **models, **content)
        root = chain_end(at_ns, run_id=f"root-{place}", status="error", error=error, root_name=text, **of)
        for event in (call, root):
            log.append(event, "e", next(number))
    said: dict[str, Any] = {"service": texts[0], "host": texts[0], "dropped": {texts[2][:32]: {"run.started": 3}}}
    log.append(report(START_NS + 400 * SECOND_NS, **said), "e", next(number))
    log.append_value(b'{"frame":1}\n{"type":"<img src=x onerror=fired()>"}\n', START_NS)
    tools.apply(log)
    for text in texts:
        add_alert(tools, text, text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile') / 'runtap.db'}"
    with serving(url, fill_with_hostile_texts) as opened:
        yield opened


def hostile_addresses() -> Sequence[str]:
    text = quote(hostile_texts()[0], safe="")
    views = [f"#/{view}?{RANGE}" for view in VIEWS]
    names = ("provider", "user", "tag", "metadata.team", "root")
    cuts = [f"#/costs?{RANGE}&by={cut}" for cut in names]
    named = [
        f"#/overview?since={text}&service={text}",
        f"#/costs?{RANGE}&by={text}",
        f"#/costs?{RANGE}&model={text}&provider={text}",
        f"#/traces?{RANGE}&runs=all&name={text}&user={text}&tag={text}",
        f"#/trace/{text}",
        f"#/session/{text}?run={text}",
        f"#/{text}",
    ]
    return [*views, *cuts, *named, f"#/trace/root-7?run={text}"]


@contextmanager
def without_policy(
    browser: Browser, server: Server, change: Callable[[str], str] = str, complaints: list[str] | None = None
) -> Iterator[Page]:
    """A tab for which no Content-Security-Policy hides what texts do; `change`: what becomes of dom.js."""

    def answer(route: Route) -> None:
        found = route.fetch()
        headers = {name: value for name, value in found.headers.items() if name != CONTENT_SECURITY}
        assert len(headers) == len(found.headers) - 1
        is_changed = route.request.url.endswith("/dom.js")
        route.fulfill(response=found, headers=headers, body=change(found.text()) if is_changed else found.body())

    with a_page(browser, server, complaints) as page:
        page.add_init_script("window.firings = 0; window.fired = () => { window.firings += 1; };")
        page.route("**/*", answer)
        yield page
        # What is under way when the tab closes has nobody to answer.
        page.unroute_all(behavior="ignoreErrors")


def firings(page: Page, at: Sequence[str]) -> dict[str, int]:
    found = {}
    for address in at:
        show(page, address)
        for place in range(min(page.locator(".u-over").count(), 1)):
            page.locator(".u-over").nth(place).hover(position={"x": 120, "y": 60})
        # What a text does may take a moment: an image that is not there.
        page.wait_for_timeout(50)
        found[address] = page.evaluate("window.firings")
    return found


def test_hostile_texts_of_events_do_nothing_without_a_policy_too(browser: Browser, hostile: Server) -> None:
    complaints: list[str] = []
    with without_policy(browser, hostile, complaints=complaints) as page:
        assert set(firings(page, hostile_addresses()).values()) == {0}
        # They are there, as text, every one.
        shown = show(page, f"#/sessions?{RANGE}")
        assert [text for text in hostile_texts() if text not in shown] == []
    # Nothing failed either, but for what the addresses ask for that is not there.
    assert [text for text in complaints if not re.search(r"\b[45]0\d\b", text)] == []


def test_hostile_texts_do_fire_once_texts_are_read_as_markup(browser: Browser, hostile: Server) -> None:
    """So that the test above would see it."""

    def unescaped(script: str) -> str:
        kept = "document.createTextNode(String(value))"
        assert kept in script
        return script.replace(kept, "document.createRange().createContextualFragment(String(value))")

    with without_policy(browser, hostile, unescaped) as page:
        assert firings(page, [f"#/sessions?{RANGE}"]).popitem()[1] > 100


# When the figures were there and painted, in milliseconds from the beginning.
_WATCH = """window.figured = new Promise((tell) => {
  const look = () => document.querySelector(".card") && document.querySelector(".u-over")
    ? requestAnimationFrame(() => tell(performance.now())) : requestAnimationFrame(look);
  look();
});"""
# Milliseconds from the click until so many rows are there and painted.
_DRAW = """async ([address, rows]) => {
  const begun = performance.now(), frame = () => new Promise(requestAnimationFrame);
  location.hash = address;
  while (document.querySelectorAll(".waterfall tbody tr").length < rows) await frame();
  await frame();
  await frame();
  return performance.now() - begun;
}"""


@pytest.mark.alone
def test_first_paint_and_a_trace_of_a_thousand_runs_take_a_second_at_most(browser: Browser, server: Server) -> None:
    paints, traces = [], []
    for _ in range(3):
        with a_page(browser, server) as page:
            page.add_init_script(_WATCH)
            show(page, f"#/overview?{RANGE}")
            paints.append(page.evaluate("figured"))
            traces.append(page.evaluate(_DRAW, ["#/trace/wide-0", TRACE_RUNS]))
    assert min(paints) <= 1_000, paints
    assert min(traces) <= 1_000, traces
