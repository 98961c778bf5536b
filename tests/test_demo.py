"""`h2c demo` and the Space: what the page does, and the page itself in a real browser."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from h2c_hf.atlas import MODELS
from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.cli import main
from h2c_hf.data.prompts import choice_answer, open_answer
from h2c_hf.evaluation.methods import METHODS


ROOT = Path(__file__).parent.parent
SPACE = ROOT / "hub_configs" / "space"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
OPEN = {"max_new_tokens": 64, "do_sample": False}


@pytest.fixture(scope="module")
def demo(atlas):
    return pytest.importorskip("h2c_hf.demo_page", reason="needs gradio").Demo(*atlas)


def test_the_bridge_in_the_package_is_the_one_that_ships():
    for name in ("config.json", "model.safetensors"):
        assert (MODELS / "bridge" / name).read_bytes() == (ROOT / "hub_configs" / "atlas" / name).read_bytes()


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "h2c_hf.demo_page", raising=False)
    assert main(["demo"]) == 2
    assert "install it with: pip install 'h2c_hf[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("reads", ["h2c", "shuffled", "zeros"])
@pytest.mark.parametrize("choices", [[], ["Algeria", "France", "Peru"]])
def test_the_columns_end_in_what_the_methods_return(demo, reads, choices):
    question = "In which country is the city of Bensekrane?"
    shown = [*demo.compare(question, "\n".join(choices), reads, 64)][-1]
    asked, form = {"question": question, "choices": choices}, "choice" if choices else "open"
    expected = [METHODS[name].generate(demo.batch(asked, form), **OPEN)[0].strip() for name in ("receiver", "text_to_text", reads)]
    assert [shown[0], shown[2], shown[4].value] == expected
    assert all("first token" in facts and "tokens/s" in facts for facts in (shown[1], shown[3], shown[5]))
    assert "Algeria" in shown[6]
    assert ("control" in shown[4].label) == (reads != "h2c")


def test_what_only_the_sharer_reads_reaches_the_answer(demo):
    (secret, prompt), invented = demo.hand_offs[0], demo.passages[0]
    assert invented["passage"] in secret and secret.endswith(prompt)
    for reads, knows in (("h2c", True), ("shuffled", False), ("zeros", False)):
        receiver, _, h2c, _ = [*demo.hand_off(secret, prompt, reads, 16)][-1]
        assert receiver != open_answer(invented) and (h2c.value == open_answer(invented)) == knows


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("compare", (" ", "", "h2c", 64), "The question is empty"),
        ("compare", ("word " * 600, "", "h2c", 64), "The prompt is too long: got .* expected at most"),
        ("compare", ("Which?", "\n".join("abcdefghijk"), "h2c", 64), "11 choices; expected 1 to 10"),
        ("hand_off", ("", "What?", "h2c", 64), "What the Sharer reads is empty"),
        ("hand_off", ("word " * 600, "What?", "h2c", 64), "too long: got .* for the Sharer"),
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
    assert (SPACE / "requirements.txt").read_text() == "h2c_hf[demo]\n"


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
            [sys.executable, *command], cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, stdout=file, stderr=file
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
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
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None)
        page.goto(f"{address}/?__theme={theme}")
        page.get_by_label("Question", exact=True).wait_for()
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


def ask(page) -> None:
    """Ask, and wait until the last stream has ended: its pace is known, and nothing is being computed."""
    button(page, "Ask").click()
    page.locator(".prose.facts:visible").last.filter(has_text="tokens/s").wait_for()


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture(scope="module")
def asked(demo):
    """A question of the test split, in words, that the Receiver and the controls do not answer rightly, and H2C does; and all answers."""
    for question in atlas_questions("test")[200:]:
        asked = {"question": question["question"], "choices": []}
        answers = {
            name: METHODS[name].generate(demo.batch(asked, "open"), **OPEN)[0].strip()
            for name in ("receiver", "text_to_text", "h2c", "shuffled", "zeros")
        }
        if [name for name, answer in answers.items() if answer == open_answer(question)] == ["text_to_text", "h2c"]:
            return question, answers
    return None


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_three_streams_end_and_the_control_takes_the_answer_away(address, visit, asked, size):
    from playwright.sync_api import expect

    question, answers = asked
    page = visit(address, size)
    text(page, "Question").fill("")
    text(page, "Question").press_sequentially(question["question"])
    ask(page)
    for label, name in (("Receiver", "receiver"), ("Text-to-text", "text_to_text"), ("H2C", "h2c")):
        expect(text(page, label)).to_have_value(answers[name])
    facts = page.locator(".prose.facts:visible")
    assert facts.count() == 3
    for n in range(3):
        expect(facts.nth(n)).to_have_text(re.compile(r"first token [\d,]+ ms · then [\d,]+ tokens/s"))
    for choice, control, name in (("another question's states",) * 2 + ("shuffled",), ("nothing (zeros)", "zeros", "zeros")):
        page.get_by_label(choice).locator("visible=true").check()
        expect(text(page, f"H2C, control: {control}")).to_have_value(answers[name])
    assert overflow(page) <= 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_the_other_tabs(address, visit, demo, size, theme):
    from playwright.sync_api import expect

    page = visit(address, size, theme)
    page.get_by_role("tab", name="Hand-off").click()
    example = demo.passages[1]
    button(page, example["question"]).click()
    expect(text(page, "Only the Sharer reads")).to_have_value(demo.hand_offs[1][0])
    ask(page)
    expect(text(page, "H2C")).to_have_value(open_answer(example))
    page.get_by_label("nothing (zeros)").locator("visible=true").check()
    expect(text(page, "H2C, control: zeros")).not_to_have_value(re.compile(open_answer(example)))
    assert overflow(page) <= 0

    page.get_by_role("tab", name="Inside").click()
    images = page.locator(".figure img:visible")
    expect(images).to_have_count(2)
    assert all(f"{theme}-theme" in image.get_attribute("class") for image in images.all())
    assert all(image.evaluate("image => image.naturalWidth") > 400 for image in images.all())
    to_the_end = "figure => { figure.scrollLeft = 1e4; return figure.scrollLeft + figure.clientWidth >= figure.scrollWidth - 1 }"
    assert all(figure.evaluate(to_the_end) for figure in page.locator(".figure:visible").all())  # nothing is cut off
    assert overflow(page) <= 0


@pytest.mark.slow
def test_examples_answer_by_letter_and_mistakes_are_told_in_the_page(address, visit, demo):
    from playwright.sync_api import expect

    page = visit(address, PHONE)
    example = demo.examples[1]
    button(page, example["question"]).click()
    expect(text(page, "Question")).to_have_value(example["question"])
    ask(page)
    expect(text(page, "H2C")).to_have_value(choice_answer(example))
    for question, message in (("", "The question is empty"), ("word " * 600, "The prompt is too long")):
        text(page, "Question").fill(question)
        button(page, "Ask").click()
        page.get_by_text(message).wait_for()
        expect(text(page, "H2C")).to_have_value(choice_answer(example))
        expect(page.get_by_text("Error", exact=True)).to_have_count(0)
    assert overflow(page) <= 0


@pytest.mark.slow
def test_the_space_opens_the_bridge_that_its_variable_names(tmp_path_factory, visit):
    from playwright.sync_api import expect

    for address in serve(tmp_path_factory, str(SPACE / "app.py"), H2C_DEMO=str(ROOT / "hub_configs" / "atlas")):
        page = visit(address, DESKTOP)
        expect(page.get_by_text("hub_configs/atlas")).to_be_visible()
        text(page, "Question").fill("Which sport does Babe Ruth play?")
        ask(page)
        expect(text(page, "H2C")).to_have_value("baseball")
