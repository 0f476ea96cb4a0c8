"""Stream of changes that open pages listen to, and the page for addresses that no other has; they stand last."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated
from urllib.parse import unquote

from fastapi import Header, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from toque.ray_apps.admission import ANY_MODEL
from toque.ray_apps.console.live import MAX_TOPICS, OpenPage, is_topic
from toque.ray_apps.console.page import Page
from toque.ray_apps.console.route import PREFIX, Anybody, console_of, page_for, pages_router, proof_of_forms
from toque.registry import Role

router = pages_router()
_NO_MORE = 204  # tells a browser to stop asking
_MAX_CHARS = 8_000


@router.get("/events")
async def follow(
    page: Annotated[Page, page_for(Role.viewer, model=ANY_MODEL)],
    topic: Annotated[list[str], Query(min_length=1, max_length=MAX_TOPICS)],
    address: Annotated[str, Query(max_length=_MAX_CHARS)] = "",
    last_event_id: Annotated[str, Header(max_length=200)] = "",
) -> Response:
    """Send an event when one of the topics changed: with the content of the page at `address`, path and query, as it is then.

    Without an address the event tells that something changed. Of figures it tells what they are.
    """
    for each in topic:
        if not is_topic(each):
            raise _wrong("topic", f"{each!r} names no topic")
    if address and not _is_page(page, address):
        raise _wrong(
            "address",
            f"{address!r} is no page of this workspace; send the path and query of one below {page.root}",
        )
    console = console_of(page.request)
    if console.live.is_full:
        return Response(status_code=_NO_MORE)
    view = None
    if address:
        csrf = partial(proof_of_forms, page.request)
        view = OpenPage(page.request, console.renderings, address, workspace=page.workspace, csrf=csrf)
    events = console.live.stream(page.workspace, topic, last_event_id, view)
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.get("/{path:path}")
async def not_found(_: Anybody, path: str) -> Response:
    """Tell that there is no such page, to somebody who has signed in."""
    raise HTTPException(HTTPStatus.NOT_FOUND, f"The console has no page {path!r}.")


def _is_page(page: Page, address: str) -> bool:
    """Whether an address is a page of the request's workspace that can be rendered: the stream itself has no end."""
    path = unquote(address.partition("?")[0])
    roots = {PREFIX, page.root}  # the first is of any workspace, by who asks
    below = any(path.startswith(f"{root}/") for root in roots)
    return below and path.rstrip("/") not in {f"{root}/events" for root in roots}


def _wrong(field: str, why: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("query", field), "msg": why, "type": "value_error"}])
