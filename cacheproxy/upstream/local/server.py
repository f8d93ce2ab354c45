"""OpenAI's dialect in front of the worker: chat completions, stream and not, and the list of the one model."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.params import FromPath
from litestar.response import Stream

from cacheproxy.errors import CacheProxyError, InvalidRequest, MethodNotAllowed, RouteNotFound, UpstreamBusy
from cacheproxy.supervise import Supervisor
from cacheproxy.upstream.local import MODEL_ID
from cacheproxy.upstream.local.generate import Finish, Piece
from cacheproxy.upstream.local.reply import Reply, event, model_card, problem
from cacheproxy.upstream.local.request import parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.upstream.local.generate import Event
    from cacheproxy.upstream.local.worker import Generation, Worker

log = structlog.get_logger()

_RETRY_AFTER_S = 5
_SSE_HEADERS = {"cache-control": "no-cache"}


class ModelNotFound(RouteNotFound):
    """No model of that name is listed here."""

    code = "model_not_found"


def create_app(worker: Worker) -> Litestar:
    """Return the child's application; it closes the worker at its end."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with Supervisor() as supervisor:
            app.state.supervisor = supervisor
            yield
        worker.close()

    return Litestar(
        [chat, list_models, get_model, health],
        lifespan=[lifespan],
        state=State({"worker": worker}),
        exception_handlers={CacheProxyError: _refuse, HTTPException: _refuse_http, Exception: _fail},
        request_max_body_size=None,  # the proxy in front has its own cap
        openapi_config=None,
        logging_config=None,
    )


@post("/v1/chat/completions", status_code=200)
async def chat(request: Request[Any, Any, Any], state: State) -> Response[Any]:
    """Answer one chat request; whatever model it names, this one answers."""
    ask = parse(await request.body())
    worker: Worker = state.worker
    generation = worker.submit(ask)
    # Ends with the response at the latest: from then on the server reports a disconnect.
    state.supervisor.spawn(_cancel_when_gone(request, generation))
    events = generation.events()
    reply = Reply(include_usage=ask.include_usage)
    if not ask.stream:
        return Response(await _whole(events, reply))
    # The head waits for the first event: a refusal gets its status, and a caller's first-byte deadline its meaning.
    first = await anext(events, None)
    return Stream(_stream(first, events, reply), media_type="text/event-stream", headers=_SSE_HEADERS)


@get("/v1/models")
async def list_models() -> dict[str, Any]:
    """List the one model."""
    return {"object": "list", "data": [model_card()]}


@get("/v1/models/{model:str}")
async def get_model(model: FromPath[str]) -> dict[str, Any]:
    """Describe the one model."""
    if model != MODEL_ID:
        raise ModelNotFound(f"the embedded model is {MODEL_ID}", param="model")
    return model_card()


@get("/health")
async def health(state: State) -> dict[str, int]:
    """Say how many requests are being answered or wait."""
    return {"places": state.worker.places}


async def _cancel_when_gone(request: Request[Any, Any, Any], generation: Generation) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation.cancel()


async def _whole(events: AsyncIterator[Event], reply: Reply) -> dict[str, Any]:
    text: list[str] = []
    async for item in events:
        match item:
            case Piece():
                text.append(item.text)
            case Finish():
                return reply.body("".join(text), item)
    raise CacheProxyError("the request was cancelled")


async def _stream(first: Event | None, events: AsyncIterator[Event], reply: Reply) -> AsyncIterator[bytes]:
    yield reply.opening()
    item = first
    try:
        while item is not None:
            yield reply.piece(item.text) if isinstance(item, Piece) else reply.closing(item)
            item = await anext(events, None)
    except CacheProxyError as exc:
        yield event(problem(exc))


def _refuse(_: Request[Any, Any, Any], error: CacheProxyError) -> Response[Any]:
    headers = {"retry-after": str(_RETRY_AFTER_S)} if isinstance(error, UpstreamBusy) else {}
    return Response(problem(error), status_code=error.status, headers=headers)


def _refuse_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    kinds: dict[int, type[CacheProxyError]] = {404: RouteNotFound, 405: MethodNotAllowed}
    if error.status_code >= 500:
        return _fail(request, error)
    kind = kinds.get(error.status_code, InvalidRequest)
    return Response(
        problem(kind("the embedded model serves POST /v1/chat/completions and GET /v1/models")),
        status_code=error.status_code,
    )


def _fail(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("local_model_request_failed", exc_info=error)
    return Response(problem(CacheProxyError("the embedded model failed; its log has the cause")), status_code=500)
