"""The stub's parts: scripts, faults, the radix tree, the clock."""

import asyncio
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError
from icrl.testing import Babble, ByteTokenizer, HeavyTailedTool
from icrl.testing.script import Speaker
from icrl.testing.stub.capacity import Batch, Capacity
from icrl.testing.stub.faults import Faults
from icrl.testing.stub.generate import session_of
from icrl.testing.stub.prefix import PrefixMemory

TOKENIZER = ByteTokenizer()
END = 258
ids = st.lists(st.integers(0, 4), max_size=12)


# ---- scripts


def said(reply, *, budget=99, stop=()):
    return Speaker([reply], TOKENIZER, name="s").reply([1], budget=budget, stop=stop, session=None)


@pytest.mark.parametrize(
    ("reply", "stop", "length", "reason", "matched"),
    [
        ("no end", (), 7, "eos", END),
        ([1, END, 5], (), 2, "eos", END),
        ([1, 2], (), 2, "length", None),
        ("a<b>c<d>", ("<d>", "<b>"), 4, "stop", "<b>"),
        ("a<b", ("<b>",), 4, "eos", END),
        ([*b"x</s>", END], ("</s>",), 5, "stop", "</s>"),
        ([END, *b"</s>"], ("</s>",), 1, "eos", END),
    ],
)
def test_a_reply_ends_where_a_models_would(reply, stop, length, reason, matched):
    end = said(reply, stop=stop)
    assert (len(end.ids), end.reason, end.matched) == (length, reason, matched)


def test_the_budget_comes_first():
    assert said("a<b>c", budget=3, stop=("<b>",)).reason == "length"
    assert said("a<b>c", budget=4, stop=("<b>",)).reason == "stop"


@given(st.lists(st.integers(0, 99), min_size=1, max_size=5), st.integers(0, 30))
def test_babble_goes_on_where_it_was_left(prompt, cut):
    whole = Babble(length=30)(prompt)
    assert Babble(length=30 - cut)([*prompt, *whole[:cut]]) == whole[cut:]


# ---- faults


@given(st.floats(0, 0.3), st.floats(0, 0.3), st.integers(0, 99))
def test_shares_of_faults(first, second, seed):
    faults = Faults(error_500=first, truncated=second, seed=seed)
    drawn = [faults.of(n) for n in range(400)]
    assert drawn == [faults.of(n) for n in range(400)]
    assert set(drawn) <= {None, "error_500", "truncated"}
    assert abs(drawn.count("error_500") / 400 - first) < 0.13
    assert abs(drawn.count("truncated") / 400 - second) < 0.13


def test_faults_by_number_and_bad_faults():
    assert [Faults(at={1: "slow"}).of(n) for n in range(3)] == [None, "slow", None]
    with pytest.raises(ConfigError, match=r"'reset' is no fault\. Did you mean 'resets'\?"):
        Faults(at={1: "reset"})
    with pytest.raises(ConfigError, match=r"add up to 1 at most, not to 1\.5"):
        Faults(slow=0.75, resets=0.75)


# ---- the radix tree


@given(st.lists(ids, max_size=8), ids)
def test_the_memory_knows_the_longest_prefix(known, asked):
    memory = PrefixMemory()
    for sequence in known:
        memory.add(sequence)

    def common(sequence):
        return next(
            (i for i, (a, b) in enumerate(zip(sequence, asked, strict=False)) if a != b), min(len(sequence), len(asked))
        )

    assert memory.match(asked) == max(map(common, known), default=0)
    memory.clear()
    assert memory.match(asked) == 0


# ---- the clock


class FakeTime:
    """A loop whose time passes only when everybody sleeps."""

    def __init__(self, loop):
        self.now, self.loop = 0.0, loop
        loop.time = lambda: self.now

    async def run_until(self, tasks):
        while not all(task.done() for task in tasks):
            for _ in range(5):
                await asyncio.sleep(0)
            timers = [timer for timer in self.loop._scheduled if not timer.cancelled()]
            if timers and not all(task.done() for task in tasks):
                self.now = max(self.now, min(timer.when() for timer in timers) + 1e-9)


def ideal_ends(arrivals, totals, capacity):
    """When each of several requests ends under processor sharing, by small steps of event simulation."""
    now, left, ends, waiting = 0.0, {}, {}, sorted(range(len(totals)), key=lambda i: arrivals[i])
    while left or waiting:
        rate = capacity.rate(len(left))
        end = min((now + tokens / rate for tokens in left.values()), default=float("inf"))
        step = min(end, arrivals[waiting[0]] if waiting else float("inf"))
        left = {i: tokens - (step - now) * rate for i, tokens in left.items()}
        now = step
        for i in [i for i, tokens in left.items() if tokens < 1e-6]:
            ends[i] = now
            del left[i]
        while waiting and arrivals[waiting[0]] <= now:
            i = waiting.pop(0)
            left[i] = totals[i]
    return ends


@pytest.mark.parametrize("seed", range(5))
async def test_requests_share_the_speed_exactly(seed):
    draw = random.Random(seed)
    capacity = Capacity(tokens_per_s=1000, tokens_per_s_per_request=100)
    arrivals = [draw.uniform(0, 3) for _ in range(40)]
    totals = [draw.randrange(1, 200) for _ in range(40)]
    clock = FakeTime(asyncio.get_running_loop())
    batch, ends = Batch(capacity), {}

    async def request(i):
        await asyncio.sleep(arrivals[i])
        job = batch.start(totals[i])
        assert await job.reach(totals[i]) == totals[i]
        ends[i] = clock.now

    tasks = [asyncio.ensure_future(request(i)) for i in range(40)]
    await clock.run_until(tasks)
    assert batch.running == batch.waiting == 0
    want = ideal_ends(arrivals, totals, capacity)
    assert max(abs(ends[i] - want[i]) for i in want) < 1e-4


async def test_streams_pauses_and_stops():
    clock = FakeTime(asyncio.get_running_loop())
    batch = Batch(Capacity(tokens_per_s_per_request=10))
    job, times = batch.start(30), []

    async def stream():
        produced = 0
        while not job.over:
            produced = await job.reach(produced + 5)
            times.append((round(clock.now, 3), produced))

    async def control():
        await asyncio.sleep(0.75)
        batch.pause()
        await asyncio.sleep(10)
        assert job.produced == 7
        batch.resume()
        await asyncio.sleep(1.0)
        batch.stop(job)

    tasks = [asyncio.ensure_future(stream()), asyncio.ensure_future(control())]
    await clock.run_until(tasks)
    assert times == [(0.5, 5), (11.0, 10), (11.5, 15), (11.75, 17)]
    assert batch.running == 0


async def test_requests_beyond_the_limit_wait():
    clock = FakeTime(asyncio.get_running_loop())
    batch = Batch(Capacity(tokens_per_s_per_request=10, max_running=2))
    jobs = [batch.start(10) for _ in range(4)]
    assert (batch.running, batch.waiting) == (2, 2)
    batch.stop(jobs[3])
    tasks = [asyncio.ensure_future(job.reach(10)) for job in jobs]
    await clock.run_until(tasks)
    assert [task.result() for task in tasks] == [10, 10, 10, 0]
    assert clock.now == pytest.approx(2.0, abs=1e-3)


async def test_without_a_capacity_tokens_are_there_at_once_unless_paused():
    batch = Batch(None)
    job = batch.start(4)
    assert (await job.reach(2), job.over) == (2, False)
    batch.pause()
    waiting = asyncio.ensure_future(job.reach(4))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    batch.resume()
    assert (await waiting, job.over) == (4, True)
    assert await batch.start(0).reach(1) == 0


@pytest.mark.parametrize(
    ("rid", "session"), [("t/0", "t"), ("icrl-1f-2/t/0", "t"), ("icrl-1f-2/a/b/0", "a/b"), ("icrl-1f-2/r", None)]
)
def test_sessions_are_read_from_names(rid, session):
    assert session_of(rid) == session


# ---- tools


def test_times_of_heavy_tailed_tools():
    tail, lognorm = HeavyTailedTool.tail(), HeavyTailedTool.lognorm()
    times = [[tool.latency_s(n) for n in range(5000)] for tool in (tail, lognorm)]
    assert [round(statistics.median(column), 1) for column in times] == [0.3, 0.5]
    assert sum(second > 3 for second in times[0]) / 5000 == pytest.approx(0.01, abs=0.005)
    assert max(times[1]) <= 60
    assert times[0][:9] == [HeavyTailedTool.tail().latency_s(n) for n in range(9)]
    assert times[0][:9] != [HeavyTailedTool.tail(seed=1).latency_s(n) for n in range(9)]


async def test_a_heavy_tailed_tool_answers_after_its_time():
    tool = HeavyTailedTool.tail(scale=1e-3)
    assert await tool({"text": "hi"}) == "hi"
    assert tool.spent_s == [tool.latency_s(0)]
