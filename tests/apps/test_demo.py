"""`h2c demo` and the Space: what the page does, and the page itself in a real browser."""

import html
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from h2c_hf import REPOSITORY
from h2c_hf.atlas import MODELS
from h2c_hf.cli import main
from h2c_hf.evaluation.inspection import message_sizes
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel, H2CForCausalLM
from h2c_hf.prompts import choice_answer, open_answer


ROOT = Path(__file__).parents[2]
SPACE = ROOT / "hub_configs" / "space"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
OPEN = {"max_new_tokens": 64, "do_sample": False}
COMPUTED = ("receiver", "text_to_text", "h2c", "sharer", "shuffled", "zeros", "noise")


@pytest.fixture(scope="module")
def demo(atlas):
    return pytest.importorskip("h2c_hf.apps.demo_page", reason="needs gradio").Demo(*atlas)


def test_the_bridge_in_the_package_is_the_one_that_ships():
    for name in ("config.json", "model.safetensors"):
        assert (MODELS / "bridge" / name).read_bytes() == (ROOT / "hub_configs" / "atlas" / name).read_bytes()


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "h2c_hf.apps.demo_page", raising=False)
    assert main(["demo"]) == 2
    assert f"install it with: pip install 'h2c_hf[demo] @ git+{REPOSITORY}'" in capsys.readouterr().err


def cards(page_html: str) -> dict[str, tuple[str, str, str]]:
    """{method: (mark, answer, facts)} of the cards that the page shows."""
    found = re.findall(
        r'<div class="card (\w+)">.*?<div class="answer">(.*?) <span class="text">(.*?)</span></div>.*?'
        r'<div class="facts">(.*?)</div>',
        page_html,
    )
    return {
        name: (re.sub("<.*?>", "", mark), html.unescape(text), facts) for name, mark, text, facts in found
    }


@pytest.mark.parametrize("choices", ["", "Algeria; France; Peru"])
def test_the_cards_end_in_what_the_methods_return(demo, choices):
    question, known = "In which country is the city of Bensekrane?", "A. Algeria" if choices else "Algeria"
    shown = [cards(page) for page in demo.compare(question, choices, known, 64)]
    assert set(shown[0].values()) == {("", "", "")}, "old answers are gone at once"
    asked = {"question": question, "choices": choices.split("; ") if choices else []}
    form = "choice" if choices else "open"
    batch = lambda: demo.batch(asked, demo.examples[1], form)  # noqa: E731
    expected = {name: METHODS[name].generate(batch(), **OPEN)[0].strip() for name in COMPUTED}
    assert {name: text for name, (_, text, _) in shown[-1].items()} == expected
    assert all("first token" in facts for _, _, facts in shown[-1].values())
    marks = {name: mark for name, (mark, _, _) in shown[-1].items()}
    assert marks["h2c"] == marks["sharer"] == "✓" and marks["shuffled"] == "✗"


def test_what_only_the_sharer_reads_reaches_the_answer(demo):
    shown = [cards([*demo.hand_off(*hand_off, 16)][-1]) for hand_off in demo.hand_offs]
    assert [cards["h2c"][:2] for cards in shown] == [("✓", known) for _, _, known in demo.hand_offs]
    assert shown[0]["receiver"][0] == shown[0]["shuffled"][0] == shown[0]["zeros"][0] == "✗"


def test_a_visitors_newer_run_ends_the_older(demo):
    """Stop begins a run that asks nothing. Another visitor's answers go on."""
    one, other = (SimpleNamespace(session_hash=name) for name in ("one", "other"))
    asked = ("In which country is the city of Bensekrane?", "", "Algeria", 64)
    runs = [demo.compare(*asked, demo.begin(visitor)) for visitor in (one, other)]
    for run in runs:
        next(run)
    later = demo.begin(one)
    assert list(runs[0]) == [] and cards([*runs[1]][-1])["h2c"][:2] == ("✓", "Algeria")
    assert cards([*demo.compare(*asked, later)][-1])["h2c"][:2] == ("✓", "Algeria")


def test_the_page_shows_a_message(atlas):
    """A bridge of the message form changes no position: the page shows the positions that it writes."""
    page = pytest.importorskip("h2c_hf.apps.demo_page", reason="needs gradio")
    model, processor = atlas
    config = H2CBridgeConfig.from_pair(model.sharer.config, model.receiver.config, bridge_form="message")
    demo = page.Demo(
        H2CForCausalLM.from_pair(model.sharer, model.receiver, bridge=H2CBridgeModel(config)).eval(),
        processor,
    )
    passage, question, _ = demo.hand_offs[0]
    (shown,) = demo.written(passage, question)
    assert shown.count("data:image/svg") == 2
    batch = demo.batch(page.as_hand_off(passage, question), demo.examples[1], "open")
    sizes = message_sizes(batch)
    assert sizes["tokens"] == [
        processor.sharer_tokenizer.decode([token]) for token in batch.inputs["sharer_input_ids"][0]
    ]
    assert all(len(row) == len(sizes["tokens"]) for kind in ("key", "value") for row in sizes[kind])
    page.page(demo)


@pytest.mark.parametrize(
    ("text", "expected", "form", "right"),
    [
        ("It is the Violin.", "violin", "open", True), ("violins", "violin", "open", False),
        ("C. USD", "C. USD", "choice", True), ("C", "C. USD", "choice", True),
        ("Cuba", "C. USD", "choice", False), ("B. CAD", "C. USD", "choice", False),
        ("x", " ", "open", None),
    ],
)  # fmt: skip
def test_the_mark_tells_right_from_wrong(text, expected, form, right):
    assert pytest.importorskip("h2c_hf.apps.demo_cards").is_right(text, expected, form) is right


def test_what_a_model_writes_is_shown_as_text(demo):
    page = pytest.importorskip("h2c_hf.apps.demo_page")
    shown = page.cards({"h2c": page.Answer(text="<script>", hint="<b>")}, "", "open")
    assert "&lt;script&gt;" in shown and "<script>" not in shown and "<b>" not in shown


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("compare", (" ", "", "", 64), "The question is empty"),
        ("compare", ("word " * 600, "", "", 64), "The prompt is too long: got .* expected at most"),
        ("compare", ("Which?", "; ".join("abcdefghijk"), "", 64), "11 choices; expected 1 to 10"),
        ("hand_off", ("", "What?", "", 64), "The text for the Sharer is empty"),
        ("hand_off", ("word " * 600, "What?", "", 64), "too long: got .* for the Sharer"),
        ("change", ("", ""), "The question is empty"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(demo, method, arguments, message):
    with pytest.warns(UserWarning, match=message):  # which the page shows
        assert len(list(getattr(demo, method)(*arguments))) == 1


def test_the_card_of_the_space_is_one():
    from huggingface_hub import SpaceCard

    card = SpaceCard.load(SPACE / "README.md")
    assert card.data.sdk == "gradio" and (SPACE / card.data.app_file).is_file()
    assert len(card.data.short_description) <= 60
    assert (SPACE / "requirements.txt").read_text() == f"h2c_hf[demo] @ git+{REPOSITORY}\n"


# In a browser


def serve(tmp_path_factory, *command: str, **environment):
    """Run a command that serves the page; its address, until the test is done."""
    pytest.importorskip("gradio", reason="needs gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "log"
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "no_proxy": "127.0.0.1", **environment}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield address
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    yield from serve(tmp_path_factory, "-m", "h2c_hf.cli", "demo")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs {CHROMIUM}")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open the page, in a window and a theme; whatever goes wrong in it fails the test."""
    wrong, pages = [], []

    def open_page(address: str, size: dict, theme: str = "light"):
        page = browser.new_page(viewport=size)
        pages.append(page)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                wrong.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None
            ),
        )
        page.goto(f"{address}/?__theme={theme}")
        page.locator("#question").wait_for()
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []


def button(page, name: str):
    return page.locator("button:visible", has_text=name)


def text(page, label: str):
    """A text box of the tab that is open."""
    return page.get_by_label(label, exact=True).locator("visible=true")


def answered(page, place: str = "answers") -> dict[str, tuple[str, str, str]]:
    """Wait until the last card is written; what all cards show."""
    page.locator(f"#{place} .card.noise .facts", has_text="first token").wait_for(timeout=120_000)
    return cards(page.locator(f"#{place}").inner_html())


def marked(shown: dict[str, tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """What the cards say but for times: marks and answers."""
    return {name: (mark, text) for name, (mark, text, _) in shown.items()}


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_a_visitor_sees_answers_and_enter_sends(address, visit, demo, size, theme):
    page = visit(address, size, theme)
    first = answered(page)  # without a click
    assert (first["receiver"][0], first["h2c"][0], first["shuffled"][0]) == ("✗", "✓", "✗")
    question = demo.examples[2]
    text(page, "Right answer, if you know it").fill(open_answer(question))
    box = text(page, "Question (Enter asks)")
    box.fill(question["question"])
    box.press("Enter")
    page.locator("#answers .card.noise .text", has_text=first["noise"][1]).wait_for(state="detached")
    assert answered(page)["h2c"][:2] == ("✓", open_answer(question))
    assert overflow(page) <= 0
    examples, question_box = (
        page.locator(place).bounding_box()["y"] for place in ("button.gallery-item >> nth=0", "#question")
    )
    assert examples < question_box, "examples come first"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_the_other_tabs(address, visit, demo, size, theme):
    from playwright.sync_api import expect

    page = visit(address, size, theme)
    answered(page)
    page.get_by_role("tab", name="Hand-off").click()
    passage, question, known = demo.hand_offs[1]
    button(page, question).click()  # runs it
    expect(text(page, "Text that only the Sharer reads")).to_have_value(passage)
    shown = marked(answered(page, "handed"))
    assert shown["h2c"] == ("✓", known)
    assert shown == marked(cards([*demo.hand_off(passage, question, known, 64)][-1]))
    assert overflow(page) <= 0

    page.get_by_role("tab", name="Inside").click()
    images = page.locator(".figure img:visible")
    expect(images).to_have_count(2, timeout=60_000)
    assert all(f"{theme}-theme" in image.get_attribute("class") for image in images.all())
    assert all(image.evaluate("image => image.naturalWidth") > 400 for image in images.all())
    to_the_end = (
        "figure => { figure.scrollLeft = 1e4; "
        "return figure.scrollLeft + figure.clientWidth >= figure.scrollWidth - 1 }"
    )
    # Nothing is cut off.
    assert all(figure.evaluate(to_the_end) for figure in page.locator(".figure:visible").all())
    assert overflow(page) <= 0


@pytest.mark.slow
def test_examples_run_at_once_and_mistakes_are_told(address, visit, demo):
    from playwright.sync_api import expect

    page = visit(address, PHONE)
    answered(page)
    example = demo.examples[1]
    button(page, example["question"]).click()
    expect(text(page, "Question (Enter asks)")).to_have_value(example["question"])
    expect(page.locator("#answers .card.h2c .text")).to_have_text(choice_answer(example), timeout=60_000)
    before = answered(page)
    for question, message in (("", "The question is empty"), ("word " * 600, "The prompt is too long")):
        text(page, "Question (Enter asks)").fill(question)
        button(page, "Ask").click()
        page.get_by_text(message).wait_for()
        assert answered(page) == before
        expect(page.get_by_text("Error", exact=True)).to_have_count(0)


@pytest.mark.slow
def test_two_visitors_at_once_and_stop(address, visit, demo):
    from playwright.sync_api import expect

    one, other = visit(address, DESKTOP), visit(address, PHONE)
    asked = {one: demo.examples[1], other: demo.examples[3]}
    for page, example in asked.items():
        button(page, example["question"]).click()
    for page, example in asked.items():
        known = choice_answer(example)
        right = marked(
            cards([*demo.compare(example["question"], "; ".join(example["choices"]), known, 64)][-1])
        )
        expect(page.locator("#answers .card.h2c .text")).to_have_text(right["h2c"][1], timeout=120_000)
        assert marked(answered(page)) == right
    one.locator("#question textarea").press("Enter")
    button(one, "Stop").click()
    button(one, demo.examples[0]["question"]).click()  # and it goes on
    one.locator("#answers .card.h2c .text", has_text=open_answer(demo.examples[0])).wait_for(timeout=120_000)


@pytest.mark.slow
def test_the_space_opens_the_bridge_that_its_variable_names(tmp_path_factory, visit):
    from playwright.sync_api import expect

    for address in serve(
        tmp_path_factory, str(SPACE / "app.py"), H2C_DEMO=str(ROOT / "hub_configs" / "atlas")
    ):
        page = visit(address, DESKTOP)
        expect(page.get_by_text("hub_configs/atlas")).to_be_visible()
        answered(page)
        text(page, "Question (Enter asks)").fill("Which sport does Babe Ruth play?")
        text(page, "Question (Enter asks)").press("Enter")
        expect(page.locator("#answers .card.h2c .text")).to_have_text("baseball", timeout=60_000)
        page.close()  # before the server is
