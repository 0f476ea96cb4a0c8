"""Routes that functions declare: path, query and body are the function's arguments, the answer is its result."""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from pydantic import BaseModel, ConfigDict, create_model

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context, use_context
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.ray_apps.admission import Admitted, GuardedRoute, NotAdmitted, admitted_of, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.registry import Principal, Role


def require_admin(function: DeclaredFunction, arguments: Mapping[str, Any], admitted: Admitted) -> None:
    """Check that only an admin gives the arguments that the function keeps for one. Raises: NotAdmitted 403."""
    for name, effect in function.admin_for.items():
        if arguments.get(name) and not admitted.may(Role.admin, model=arguments.get("model")):
            principal = admitted.principal
            raise NotAdmitted(
                403,
                f"{principal.name} has {principal.roles}; {effect.format_map(defaultdict(str, arguments))} needs admin: ask one",
            )


def _route(function: DeclaredFunction) -> GuardedRoute:
    """Make the route of a function, whose parameters FastAPI reads from the signature that is given here."""
    route = function.route
    assert route is not None  # noqa: S101  # chosen by it

    async def answer(request: Request, **sent: Any) -> Json:
        body: BaseModel | None = sent.pop("body", None)
        sent.pop("principal")
        arguments = sent | {name: getattr(body, name) for name in (body.model_fields_set if body else ())}
        require_admin(function, arguments, admitted_of(request))
        context = await context_of(request)
        return Json(await services_of(request).run(_run, function, arguments, context), route.status)

    def parameter(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)

    described = function.input_schema["properties"]
    known, fields = [parameter("request", Request)], {}
    known.append(parameter("principal", Annotated[Principal, allowed(function.role)]))
    for name, declared in function.signature.signature.parameters.items():
        kind, text = function.signature.hints[name], described[name].get("description")
        if name in route.parameters:
            known.append(parameter(name, Annotated[kind, Path(description=text)]))
        elif route.has_body:
            fields[name] = (kind, ... if declared.default is declared.empty else declared.default)
        else:
            known.append(parameter(name, Annotated[kind, Query(description=text)], declared.default))
    if fields:
        title = "".join(part.title() for part in function.name.split("_"))
        made = create_model(f"{title}Request", __config__=ConfigDict(extra="forbid"), **fields)  # type: ignore[call-overload]
        known.append(parameter("body", Annotated[made, Body()]))
    answer.__name__, answer.__doc__ = function.name, function.doc
    answer.__signature__ = inspect.Signature(known)  # type: ignore[attr-defined]  # what FastAPI asks for
    return GuardedRoute(
        route.path,
        answer,
        methods=[route.method],
        status_code=route.status,
        response_model=function.signature.hints["return"],
        tags=[function.body.__module__.rpartition(".")[2]],
    )


def _run(function: DeclaredFunction, arguments: Mapping[str, Any], context: Context) -> Any:
    with use_context(context):
        return function.signature.result.dump_python(function.body(**arguments), mode="json")


for _module in catalog.RESOURCES:
    importlib.import_module(_module)
router = APIRouter(route_class=GuardedRoute)
router.routes.extend(_route(each) for each in catalog.all_functions() if each.route is not None)
