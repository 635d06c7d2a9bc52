from __future__ import annotations

import asyncio
import json

from served import ask, events_of
from watched import until

from icrl.testing import HangingTool


class Lines:
    """Remembers what would be written."""

    def __init__(self):
        self.written = []

    def write(self, line):
        assert b"\n" not in line
        self.written.append(json.loads(line))


FIELDS = ["time", "request_id", "caller", "remote", "method", "path", "status", "bytes", "wall_s", "trajectories"]


async def test_a_line_says_who_what_and_which_trajectories(serve):
    lines = Lines()
    client = await serve(["<answer> yes </answer>"], lines=lines)
    async with client.post("/v1/chat/completions", json=ask("a secret")) as whole:
        trajectory = (await whole.json())["choices"][0]["message"]["icrl"]["trajectory_id"]
    async with client.post("/v1/responses", json={"input": "a secret", "stream": True}) as streamed:
        events = await events_of(streamed)
    async with client.get("/nowhere?api_key=secret") as missing:
        await missing.read()
    await until(lambda: len(lines.written) == 3)
    first, second, third = lines.written
    assert list(first) == FIELDS
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (first["request_id"], first["bytes"]) == (whole.headers["X-Request-Id"], whole.content_length)
    assert first["trajectories"] == [trajectory]
    assert second["trajectories"] == [events[-1].data["response"]["icrl"]["trajectory_id"]]
    assert second["bytes"] > 1000
    assert (third["status"], third["path"], third["trajectories"]) == (404, "/nowhere", [])
    assert "secret" not in json.dumps(lines.written)


async def test_callers_are_told_apart_without_their_keys(serve, tmp_path):
    (tmp_path / "keys").write_text("first\nsecond\n")
    lines = Lines()
    client = await serve(["<answer> yes </answer>"], lines=lines, api_key_file=tmp_path / "keys")
    for key in ("first", "second", "first", "wrong"):
        async with client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
            await response.read()
    await until(lambda: len(lines.written) == 4)
    first, second, again, wrong = [line["caller"] for line in lines.written]
    assert first == again != second
    assert wrong == ""
    assert not {"first", "second", "wrong"} & {first, second}
    assert [line["status"] for line in lines.written] == [200, 200, 200, 401]


async def test_a_client_that_vanished_has_a_line_too(serve):
    lines, tool = Lines(), HangingTool()
    client = await serve(["<hang> <text>x</text> </hang>"], lines=lines, agent={"tools": [tool]})
    asking = asyncio.create_task(client.post("/v1/responses", json={"input": "hi"}))
    await until(lambda: tool.calls)
    asking.cancel()
    await until(lambda: lines.written)
    (line,) = lines.written
    assert (line["status"], line["bytes"], len(line["trajectories"])) == (None, None, 1)
    assert tool.cancellations == 1


async def test_paths_that_cannot_be_encoded_are_logged_all_the_same(serve):
    lines = Lines()
    client = await serve(["x"], lines=lines)
    for path in (b"/\xff\xfe", b"/%ff%fe", b"/" + b"x" * 3000):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.split()[1] in (b"400", b"404")
    assert [line["status"] for line in lines.written][-2:] == [404, 404]
    assert all(len(line["path"]) <= 200 for line in lines.written)
