"""Stream of changes that open pages listen to."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response, StreamingResponse

from ray_apps.admission import ANY_MODEL
from ray_apps.console.live import MAX_TOPICS, is_topic
from ray_apps.console.page import Page
from ray_apps.console.route import console_of, page_for, pages_router
from registry import Role

router = pages_router()
ENTRY = None
_NO_MORE = 204  # tells a browser to stop asking


@router.get("/events")
async def follow(
    page: Annotated[Page, page_for(Role.viewer, model=ANY_MODEL)],
    topic: Annotated[list[str], Query(min_length=1, max_length=MAX_TOPICS)],
    last_event_id: Annotated[str, Header(max_length=200)] = "",
) -> Response:
    """Send an event when one of the topics changed; tells that it did, and for figures what they are."""
    wrong = [each for each in topic if not is_topic(each)]
    if wrong:
        raise RequestValidationError(
            [{"loc": ("query", "topic"), "msg": f"{wrong[0]!r} names no topic", "type": "value_error"}]
        )
    live = console_of(page.request).live
    if live.is_full:
        return Response(status_code=_NO_MORE)
    events = live.stream(page.workspace, topic, last_event_id)
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
