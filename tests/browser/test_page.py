"""The page, used as a person uses it: in a real browser, by mouse, keyboard and ear."""

from __future__ import annotations

import asyncio
import re

import pytest
from demo import BREAKS, HOSTILE, RIVER, agent
from watched import until

from icrl.serve.config import ServeConfig
from icrl.serve.server import running

expect = pytest.importorskip("playwright.async_api", reason="the page's tests need playwright").expect
pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

STORY = "Tell me a long story."
DISTANCE = "log => log.scrollHeight - log.scrollTop - log.clientHeight"
DURATION = re.compile(r"\d+ ms|\d\.\d s")

# The contrast of every visible text with what is behind it, as WCAG defines it; those below 4.5.
FAINT = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return { rgb: m.slice(0, 3), a: m[3] ?? 1 }; };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => {
    const own = parse(getComputedStyle(e).backgroundColor);
    return own.a === 1 ? own.rgb : ground(e.parentElement);
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || ["SCRIPT", "STYLE"].includes(e.tagName) || !e.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color).rgb), light(ground(e))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faint.push(`${text.slice(0, 30)} (${e.tagName}.${e.className}) ${contrast.toFixed(2)}`);
  }
  return faint;
}"""


async def test_a_streamed_answer_shows_each_call_with_query_result_and_time(look):
    visit = await look()
    visit.library.open.clear()
    answer = await visit.ask(RIVER, wait=False)
    await expect(answer.locator(".call.running")).to_contain_text("lake capital of Arven")
    await expect(answer.locator(".call.running .time")).to_have_text("running …")
    await expect(visit.page.get_by_role("button", name="Stop")).to_be_visible()
    visit.library.open.set()
    await expect(answer).not_to_have_attribute("aria-busy", "true")
    await expect(answer.locator(".words")).to_contain_text("reaches the sea at Puren after 118 km.")
    first, second = answer.locator(".call").nth(0), answer.locator(".call").nth(1)
    await expect(first.locator(".time")).to_have_text(DURATION)
    await expect(second.locator("summary")).to_contain_text("Lirux river")
    await expect(first.locator(".inside")).to_be_hidden()
    await first.locator("summary").click()
    await expect(first.get_by_role("region", name="Result")).to_contain_text("moved in 1921 from Old Harbour to Lirux")
    await expect(first.locator("dl")).to_contain_text("lake capital of Arven")
    await expect(first.locator("dl")).to_contain_text(DURATION)
    await expect(answer.locator(".thought").first.locator(".brief")).to_contain_text("I need the capital of Arven")
    await expect(answer.locator(".foot")).to_contain_text(re.compile(r"\d+ tokens read · \d+ written · \d+ from tools"))
    await expect(visit.page.get_by_role("button", name="Send")).to_be_visible()


async def test_questions_continue_the_conversation_until_a_new_one_is_begun(look):
    visit = await look()
    await visit.ask(RIVER)
    answer = await visit.ask("And who is its mayor?")
    await expect(answer.locator(".words")).to_have_text("Oda Venn, since 2019.")
    first, second = visit.bodies
    assert first["previous_response_id"] is None
    assert second["previous_response_id"].startswith("resp_")
    await visit.page.get_by_role("button", name="New conversation").click()
    await expect(visit.page.get_by_role("article")).to_have_count(0)
    await expect(visit.page.get_by_role("heading", name="Ask, and watch")).to_be_visible()
    await visit.ask("Short?")
    assert visit.bodies[2]["previous_response_id"] is None


async def test_a_failed_call_says_so(look):
    visit = await look()
    answer = await visit.ask("What is lost?")
    await expect(answer.locator(".call .time")).to_have_text(re.compile(r"failed, (< )?\d+ ms"))
    await answer.locator(".call summary").click()
    await expect(answer.get_by_role("region", name="Error")).to_contain_text("nothing was found")


async def test_stop_ends_a_call_and_the_conversation_goes_on(look):
    visit = await look()
    visit.library.open.clear()
    answer = await visit.ask(RIVER, wait=False)
    await expect(answer.locator(".call.running")).to_be_visible()
    await visit.page.get_by_role("button", name="Stop").click()
    await expect(answer).to_contain_text("Stopped.")
    await expect(visit.page.get_by_label("Your question")).to_be_focused()
    assert visit.library.cancelled == 1
    await expect((await visit.ask("Short?")).locator(".words")).to_have_text("Yes.")
    assert visit.bodies[1]["previous_response_id"].startswith("resp_")


async def test_escape_stops_a_stream_and_keeps_its_words(look):
    visit = await look(latency_s=2.0)
    answer = await visit.ask(STORY, wait=False)
    await expect(answer.locator(".words.busy")).to_contain_text("Line 2 of")
    await visit.page.keyboard.press("Escape")
    await expect(answer).to_contain_text("Stopped.")
    await expect(answer.locator(".words")).to_contain_text("Line 1 of")
    await expect(answer.get_by_role("button", name="Tokens")).to_be_visible()
    assert not visit.server.service.live


def said(engine):
    """All that is being said."""
    return "".join(engine.tokenizer.decode(live.ids) for live in engine._live.values())


async def still(element, what):
    """Return something of the page once it does not change any more."""
    before, now = None, await element.evaluate(what)
    while now != before:
        await asyncio.sleep(0.2)
        before, now = now, await element.evaluate(what)
    return now


async def test_a_reader_who_scrolled_up_is_left_alone(look):
    visit = await look(latency_s=2.0, options={"viewport": {"width": 700, "height": 420}})
    page, engine = visit.page, visit.server.service.agent.model.engine
    log = page.locator("#log")
    answer = await visit.ask(STORY, wait=False)
    await until(lambda: "Line 60 of" in said(engine))
    await engine.pause()
    *_, last = re.findall(r"Line \d+ of", said(engine))
    await expect(answer.locator(".words")).to_contain_text(last)
    await still(answer.locator(".words"), "words => words.textContent")
    assert await log.evaluate(DISTANCE) < 8
    await log.hover()
    await page.mouse.wheel(0, -200)
    async with asyncio.timeout(5):
        while await log.evaluate(DISTANCE) < 190:  # noqa: ASYNC110 - the wheel takes effect a little later
            await asyncio.sleep(0.02)
    latest = page.get_by_role("button", name="Go to the latest")
    await expect(latest).to_be_hidden()
    before = await still(log, "log => log.scrollTop")
    await engine.resume()
    await expect(latest).to_be_visible()
    await expect(answer).not_to_have_attribute("aria-busy", "true")
    assert await log.evaluate("log => log.scrollTop") == before
    await latest.click()
    await expect(latest).to_be_hidden()
    assert await log.evaluate(DISTANCE) < 8


async def test_tokens_show_where_they_came_from_and_how_likely_they_were(look):
    visit = await look()
    answer = await visit.ask(RIVER)
    await answer.get_by_role("button", name="Tokens").click()
    view = answer.get_by_role("region", name="Tokens of this answer")
    await expect(view.locator(".run.policy.trained")).to_have_count(3)
    await expect(view.locator(".run.tool.masked")).to_have_count(2)
    await expect(view.locator(".run.prompt.masked").first).to_contain_text("<|im_start|>user")
    options = view.get_by_role("option")
    assert await view.locator(".policy [role=option]").count() == int(
        re.search(r"(\d+) trained", await view.locator("p").inner_text())[1]
    )
    sampled = view.locator(".run.policy [role=option]").filter(has_text="need")
    await sampled.hover()
    note = view.locator(".note")
    await expect(note).to_contain_text(re.compile(r"need.*trained.*logprob -0\.\d{4}.*p 0\.\d{3}"))
    await view.locator(".run.tool [role=option]").nth(12).hover()
    await expect(note).to_contain_text(re.compile("tool, tool result.*masked"))
    assert "logprob" not in await note.inner_text()
    assert await options.count() > 200


async def test_tokens_can_be_walked_by_keyboard(look):
    visit = await look()
    answer = await visit.ask("Short?")
    button = answer.get_by_role("button", name="Tokens")
    await button.press("Enter")
    listed = answer.get_by_role("listbox", name="Tokens, in order")
    await listed.focus()
    keys = visit.page.keyboard
    await keys.press("ArrowRight")
    assert await listed.get_attribute("aria-activedescendant") == "token-1-0"
    first = await answer.locator("#token-1-0").get_attribute("aria-label")
    assert re.fullmatch(r"<\|im_start\|>, id \d+, prompt, system, masked, control token", first)
    await keys.press("End")
    last = answer.locator("#" + await listed.get_attribute("aria-activedescendant"))
    assert re.search(r"policy, text, trained, logprob -0\.\d{4}, p", await last.get_attribute("aria-label"))
    await keys.press("Home")
    await keys.press("ArrowDown")
    await expect(answer.locator(".note")).to_contain_text("masked")
    assert await listed.get_attribute("aria-activedescendant") not in ("token-1-0", "token-1-1")
    await keys.press("ArrowUp")
    assert await listed.get_attribute("aria-activedescendant") == "token-1-0"
    await keys.press("Escape")
    await expect(listed).to_be_hidden()
    await expect(button).to_be_focused()
    assert await button.get_attribute("aria-expanded") == "false"


async def test_an_engine_that_fails_is_an_alert_without_its_inside(look):
    visit = await look()
    answer = await visit.ask(BREAKS)
    alert = answer.get_by_role("alert")
    await expect(alert).to_contain_text("The engine failed while answering.")
    assert "0xdeadbeef" not in await visit.page.content()
    await alert.get_by_role("button", name="Try again").click()
    await expect(visit.page.get_by_role("article", name="Answer")).to_have_count(1)
    await expect(visit.page.get_by_role("alert")).to_be_visible()
    await expect((await visit.ask("Short?")).locator(".words")).to_have_text("Yes.")


async def test_refusals_show_the_servers_message(look):
    visit = await look()
    answer = await visit.ask("long " * 40_000)
    await expect(answer.get_by_role("alert")).to_contain_text("tokens; the model takes 32768")
    assert visit.complaints == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    visit.complaints.clear()


async def test_a_server_that_went_away_is_found_again_and_told_the_conversation(look):
    visit = await look(latency_s=0.2)
    await visit.ask(RIVER)
    port = int(visit.server.address.rsplit(":", 1)[1])
    await visit.page.route("**/*", lambda route: route.abort("connectionrefused"))
    answer = await visit.ask("And who is its mayor?")
    await expect(answer.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    await expect(visit.page.locator("#state")).to_have_text("not reachable, trying again …")
    # What stands in for the server at its address has another one of its own.
    settings = ServeConfig(port=0, access_log=False, name="again", cors_origin=(visit.server.address,))
    async with running(settings, agent) as fresh:
        await fresh.loading
        other = int(fresh.address.rsplit(":", 1)[1])
        await visit.page.unroute("**/*")
        move = lambda route: route.continue_(url=route.request.url.replace(str(port), str(other)))  # noqa: E731
        await visit.page.route("**/*", move)
        await expect(visit.page.locator("#state")).to_have_text("again with search")
        await answer.get_by_role("button", name="Try again").click()
        await expect(visit.page.locator(".words").last).to_have_text("Oda Venn, since 2019.")
        await visit.page.unroute("**/*")
    assert all("Failed to load resource" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
    assert [item.get("role") or item["type"] for item in visit.bodies[-1]["input"]] == [
        *("user", "reasoning", "mcp_call", "reasoning", "mcp_call", "assistant", "user")
    ]


async def test_a_server_with_a_key_asks_for_it_and_keeps_the_question(look, monkeypatch):
    monkeypatch.setenv("ICRL_API_KEY", "secret-key")
    visit = await look()
    page = visit.page
    await expect(page.locator("#state")).to_have_text("ready, needs an API key")
    await page.get_by_label("Your question").fill("Short?")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("The API key is missing or wrong")
    await expect(page.get_by_label("Your question")).to_have_value("Short?")
    key = page.get_by_label("This server needs an API key.")
    await expect(key).to_be_focused()
    await key.fill("wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("The server does not accept this key.")
    await key.fill("secret-key")
    await page.get_by_role("button", name="Use key").click()
    await expect(key).to_be_hidden()
    await expect(page.locator("#state")).to_have_text("demo with search")
    await page.keyboard.press("Enter")
    await expect(page.locator(".words")).to_have_text("Yes.")
    assert "secret-key" not in await page.content()
    assert set(visit.complaints) == {
        "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
    }
    visit.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_both_themes_can_be_read(look, scheme):
    visit = await look(options={"color_scheme": scheme})
    assert await visit.page.evaluate(FAINT) == []
    answer = await visit.ask("What is lost?")
    await answer.locator(".call summary").click()
    await answer.get_by_role("button", name="Tokens").click()
    await visit.ask(BREAKS)
    assert await visit.page.evaluate(FAINT) == []


async def test_the_theme_can_be_chosen_and_is_remembered(look):
    visit = await look(options={"color_scheme": "light"})
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await visit.page.evaluate(ground)
    theme = visit.page.get_by_role("button", name="Theme")
    await theme.click()
    assert await visit.page.evaluate(ground) == light
    await theme.click()
    await expect(visit.page.get_by_role("button", name="Theme: dark")).to_be_visible()
    dark = await visit.page.evaluate(ground)
    assert dark != light
    await visit.page.reload()
    assert await visit.page.evaluate(ground) == dark


async def test_nothing_is_wider_than_a_phone(look):
    visit = await look(options={"viewport": {"width": 390, "height": 780}, "has_touch": True})
    wide = """() => [...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
      && e.getBoundingClientRect().right > innerWidth + .5).map(e => e.tagName + "." + e.className)"""
    assert await visit.page.evaluate(wide) == []
    for question in (RIVER, "What is lost?", "x" * 400, "Say something hostile."):
        answer = await visit.ask(question)
        for summary in await answer.locator("summary").all():
            await summary.click()
        await answer.get_by_role("button", name="Tokens").click()
        await answer.get_by_role("listbox").wait_for()
    await visit.ask(BREAKS)
    assert await visit.page.evaluate(wide) == []
    assert await visit.page.evaluate("document.scrollingElement.scrollWidth") == 390


async def test_everything_works_without_a_mouse(look):
    visit = await look()
    page, keys = visit.page, visit.page.keyboard
    await expect(page.get_by_label("Your question")).to_be_focused()
    await keys.type("What is")
    await keys.press("Shift+Enter")
    await keys.type("lost?")
    assert await page.get_by_label("Your question").input_value() == "What is\nlost?"
    await page.get_by_label("Your question").fill("What is lost?")
    await keys.press("Enter")
    answer = page.get_by_role("article", name="Answer")
    await expect(answer.locator(".foot")).to_be_visible()
    await page.locator("#theme").focus()
    names = ["theme"]
    for _ in range(7):
        await keys.press("Tab")
        names.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert names[:3] == ["theme", "fresh", "log"]
    assert names[3].startswith("!search")
    assert names[4:] == ["Tokens", "Copy", "text", "send"]
    await answer.locator("summary").focus()
    await keys.press("Enter")
    await expect(answer.get_by_role("region", name="Error")).to_be_visible()


async def test_what_is_heard_of_the_page(look):
    visit = await look()
    visit.library.open.clear()
    page = visit.page
    await expect(page.get_by_role("status").first).to_have_text("demo with search")
    await expect(page.get_by_role("main", name="Conversation")).to_be_visible()
    news = page.locator("#news")
    answer = await visit.ask(RIVER, wait=False)
    await expect(answer).to_have_attribute("aria-busy", "true")
    await expect(news).to_have_text("Calling search: lake capital of Arven")
    visit.library.open.set()
    await expect(news).to_contain_text("The river Torix.")
    nameless = """() => [...document.querySelectorAll("button, input, textarea, [role=region], article")]
      .filter(e => e.checkVisibility() && !(e.ariaLabel || e.labels?.length || e.textContent.trim()))"""
    assert await page.evaluate(nameless) == []
    assert await page.get_attribute("html", "lang") == "en"
    assert await page.title() == "icrl"
    heard = await page.locator("body").aria_snapshot()
    for line in (
        'button "Theme: as the system has it"',
        'button "New conversation"',
        'textbox "Your question"',
        'button "Send"',
    ):
        assert line in heard


async def test_markup_in_questions_results_and_answers_is_only_text(look):
    visit = await look()
    page = visit.page
    answer = await visit.ask("Say something hostile.")
    await answer.locator(".call summary").click()
    await expect(answer.get_by_role("region", name="Result")).to_have_text(HOSTILE)
    await expect(answer.locator(".words")).to_contain_text("<img src=x onerror=")
    await answer.get_by_role("button", name="Tokens").click()
    await answer.get_by_role("listbox").wait_for()
    await visit.ask(HOSTILE)
    await expect(page.locator(".user").last).to_have_text(HOSTILE)
    assert await page.locator("#turns :is(img, script, a, style, iframe)").count() == 0
    assert await page.evaluate("window.hit") is None


async def test_the_policy_of_the_page_is_enforced(look):
    visit = await look()
    page = visit.page
    await page.evaluate("""() => {
      const script = document.createElement("script"), image = document.createElement("div");
      script.textContent = "window.hit = 'script'";
      image.innerHTML = "<img src=x onerror=\\"window.hit='img'\\">";
      document.body.append(script, image);
    }""")
    blocked = await page.evaluate("fetch('http://127.0.0.2:9/').then(() => 'sent', error => error.message)")
    assert blocked == "Failed to fetch"
    assert await page.evaluate("window.hit") is None
    assert len(visit.complaints) >= 3
    assert all("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
    visit.outside.clear()
