"""Pages of reports: the list by model and kind, and each report as it was written, kept apart from the console."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import Query
from starlette.responses import HTMLResponse, Response

from toque.ray_apps.console.route import FRAME_POLICY, FRAMED_SANDBOX, SANDBOX, Entry, Viewer, pages_router

router = pages_router()
ENTRY = Entry("Reports", "reports")
ROWS = 100
KINDS: Final = ("model", "rollout", "alarm", "evidently", "features")


@router.get("/reports")
async def list_reports(
    page: Viewer,
    subject: Annotated[str, Query(max_length=128)] = "",
    kind: Literal["model", "rollout", "alarm", "evidently", "features"] | None = None,
    after: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """List the reports, a page at a time by name, the newest of the page first."""
    found = await page.api.get("/reports", subject=subject or None, kind=kind, after=after, limit=ROWS)
    return await page.render(
        "reports.html",
        live=("reports/*",),
        reports=sorted(found, key=lambda each: each["written_at"] or "", reverse=True),
        subject=subject,
        kind=kind,
        kinds=KINDS,
        after=after,
        following=found[-1]["name"] if len(found) == ROWS else None,
    )


@router.get("/reports/{name}")
async def show_report(page: Viewer, name: str) -> Response:
    """Show a report in a frame that runs its scripts and reaches nothing."""
    await page.api.download(f"/reports/{page.quoted(name)}")  # there is one, and the viewer may see it
    answer = await page.render("report.html", name=name)
    answer.headers["Content-Security-Policy"] = FRAME_POLICY
    return answer


@router.get("/reports/{name}/content")
async def show_content(page: Viewer, name: str) -> Response:
    """Send a report as it was written; its scripts run in the frame of `show_report` alone."""
    content = await page.api.download(f"/reports/{page.quoted(name)}")
    framed = page.request.headers.get("sec-fetch-dest") == "iframe"
    policy = FRAMED_SANDBOX if framed else SANDBOX
    return HTMLResponse(
        content,
        headers={
            "Content-Security-Policy": policy,
            "X-Frame-Options": "SAMEORIGIN",
            "X-DNS-Prefetch-Control": "off",
        },
    )
