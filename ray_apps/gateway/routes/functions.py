"""Routes of functions: list, describe, call now, call durably, or submit for later; and of signals to what was submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel

from toque.functions.arguments import Name
from toque.functions.resources.invocations import InvocationState, state_of, state_of_record
from toque.functions.runtime.context import Context, use_context
from toque.functions.runtime.declaration.command import Command, Route, View
from toque.functions.runtime.durable.invocation import Invocation, ledger_of
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.ray_apps.admission import GuardedRoute, admitted_of
from toque.ray_apps.gateway.openapi import get_http, list_http
from toque.ray_apps.gateway.problems import Problem, problem_of_failure, problem_of_function
from toque.ray_apps.gateway.routes.resources import require_admin
from toque.ray_apps.gateway.services import Operator, Services, Viewer, context_of, services_of
from toque.ray_apps.gateway.wire import Json, json_of
from toque.registry import Role

router = APIRouter(route_class=GuardedRoute)

Key = Annotated[str | None, Header(pattern="^[!-~]{1,255}$", description="1 to 255 visible ASCII characters")]


class FunctionSummary(BaseModel):
    """What a list shows of a function: the role that calling it takes, its time limit, what it runs by, its commands."""

    name: str
    reference: str
    doc: str
    role: str
    timeout_s: float | None
    schedules: list[str]
    events: list[str]
    commands: list[Command]
    view: View | None
    route: Route | None


class FunctionDescription(FunctionSummary):
    """What a caller may know of a function: its summary, digest, schemas and limits."""

    digest: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    resources: dict[str, Any]
    max_attempts: int
    cache: bool


@router.get(
    "/functions", tags=["functions"], response_model=list[FunctionDescription] | list[FunctionSummary]
)
async def list_functions(
    request: Request,
    _: Viewer,
    brief: bool = False,  # noqa: FBT001, FBT002  # a query parameter
) -> Json:
    """List every function that can be called by HTTP in the workspace; `brief` leaves digests and schemas out."""
    await services_of(request).ready()
    found = list_http(await context_of(request))

    def described() -> list[dict[str, Any]]:
        made = (summarise(each) if brief else describe(each) for each in found)
        return [each.model_dump(mode="json") for each in made]

    return Json(await services_of(request).run(described))  # digests take a while


@router.get("/functions/{name}", tags=["functions"], response_model=FunctionDescription)
async def get_function(request: Request, name: str, _: Viewer) -> Json:
    """Describe one function, with the JSON Schemas of its arguments and result."""
    await services_of(request).ready()
    found = get_http(name, await context_of(request), admitted_of(request))
    return Json((await services_of(request).run(describe, found)).model_dump(mode="json"))


@router.post(
    "/functions/{name}",
    tags=["functions"],
    responses={202: {"model": InvocationState, "description": "Accepted; see Location"}},
)
async def call_function(
    request: Request,
    name: str,
    _: Viewer,
    idempotency_key: Key = None,
    prefer: Annotated[str | None, Header()] = None,
) -> Json:
    """Call a function on a JSON object of arguments; its description names the role that this takes.

    Without headers it runs once, now. With `Idempotency-Key` it is recorded, run durably, and the same key gives
    the same response for ever. With `Prefer: respond-async` the response is 202 with the invocation's Location. Both
    take an operator.
    Arguments that do not fit the schema are 422; arguments that fit and are refused by the function are 409.
    """
    services = services_of(request)
    await services.ready()
    context, admitted = await context_of(request), admitted_of(request)
    function = get_http(name, context, admitted)
    later = "respond-async" in (prefer or "")
    admitted.require(function.role)
    if later or idempotency_key is not None:  # it writes a record
        admitted.require(Role.operator)
    arguments = await _arguments(request)
    require_admin(function, arguments, admitted)
    if idempotency_key is None and not later:
        return Json(await services.run(_run, function, arguments, context))
    invocation = await services.run(_submit, function, arguments, idempotency_key, context)
    if later:
        return _accepted(request, await services.run(state_of, invocation), prefer)
    return await _awaited(request, services, function, invocation)


@router.post(
    "/invocations/{invocation}/signals/{name}",
    tags=["invocations"],
    response_model=InvocationState,
    status_code=202,
)
async def signal_invocation(request: Request, invocation: Name, name: Name, _: Operator) -> Json:
    """Send signal `name`, with the JSON value in the body, to the workflow that waits for it."""
    services, context = services_of(request), await context_of(request)
    value = await json_of(request) if await request.body() else None
    record = await services.run(ledger_of(context).signal, invocation, name, value)
    return Json((await services.run(state_of_record, record, context)).model_dump(mode="json"), 202)


def summarise(function: DeclaredFunction) -> FunctionSummary:
    """Summarise a function for a list, without its digest, which takes a while."""
    return FunctionSummary(
        name=function.name,
        reference=function.reference,
        doc=function.doc,
        role=function.role.name,
        timeout_s=function.timeout_s,
        schedules=[cron.text for cron in function.schedule],
        events=[subscription.text for subscription in function.on],
        commands=list(function.command),
        view=function.view,
        route=function.route,
    )


def describe(function: DeclaredFunction) -> FunctionDescription:
    """Describe a function to a caller, with its JSON Schemas."""
    resources = function.resources
    return FunctionDescription(
        **summarise(function).model_dump(),
        digest=function.digest,
        input_schema=function.input_schema,
        output_schema=function.output_schema,
        resources={"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus},
        max_attempts=function.retries.max_attempts,
        cache=function.cache,
    )


async def _arguments(request: Request) -> dict[str, Any]:
    if not await request.body():
        return {}
    value = await json_of(request)
    if not isinstance(value, dict):
        raise Problem(422, f"the body is a JSON {type(value).__name__}; send an object of arguments by name")
    return value


def _run(function: DeclaredFunction, arguments: Mapping[str, Any], context: Context) -> Any:
    with use_context(context):
        started = function.remote_json(arguments)
        try:
            return function.signature.dump_result(started.result())
        except Exception as error:  # whatever the user's function raises is reported to its caller
            raise problem_of_function(function.name, error) from error


def _submit(
    function: DeclaredFunction, arguments: Mapping[str, Any], key: str | None, context: Context
) -> Invocation[Any]:
    with use_context(context):
        accepted: Invocation[Any] = function.submit_json(arguments, key=key)
        return accepted


async def _awaited(
    request: Request, services: Services, function: DeclaredFunction, invocation: Invocation[Any]
) -> Json:
    try:
        record = await services.run(invocation.wait, services.wait_s)
    except TimeoutError:
        return _accepted(request, await services.run(state_of, invocation), None)
    answer = await services.run(state_of_record, record, invocation.used)
    headers = {"Location": _location(request, answer)}
    if answer.status == "succeeded":
        return Json(answer.result, headers=headers)
    if answer.failure is None:
        raise Problem(
            409, f"{function.name} {answer.id} was {answer.status}", kind=answer.status, headers=headers
        )
    raise problem_of_failure(
        function.name, answer.failure["type"], answer.failure["message"], headers=headers
    )


def _accepted(request: Request, answer: InvocationState, prefer: str | None) -> Json:
    headers = {"Location": _location(request, answer)}
    headers |= {"Preference-Applied": "respond-async"} if prefer else {"Retry-After": "1"}
    return Json(answer.model_dump(mode="json"), 202, headers=headers)


def _location(request: Request, answer: InvocationState) -> str:
    return f"{request.scope.get('root_path', '')}/invocations/{answer.id}"
