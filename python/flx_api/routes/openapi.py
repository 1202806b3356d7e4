"""The OpenAPI 3.1 document, made from the table of routes, the command registry and the models.

Rules:
- Nothing is written here that is declared elsewhere: names, sentences, arguments and results come from the registry.
- Every operation says what can go wrong: the problem documents it may answer with.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any, Final

import msgspec

from flx_api.commands import COMMANDS, Command
from flx_api.errors import CODES
from flx_api.gateway.logs import LogQuery
from flx_api.models.envelope import (
    BatchEnd,
    BatchReply,
    BatchRequest,
    BatchResult,
    CommandOptions,
    CommandReply,
    ExecuteRequest,
    KeySet,
    Liveness,
    Problem,
    Readiness,
    ServiceRoot,
    Ticket,
)
from flx_api.models.plan import Plan
from flx_api.routes import table
from flx_api.websocket.sse import EventQuery

_REF: Final = "#/components/schemas/{name}"
_OWN: Final[dict[table.Page, type[msgspec.Struct]]] = {
    table.EXECUTE: CommandReply,
    table.BATCH: BatchReply,
    table.COMMAND: CommandReply,
    table.ROOT_COMMAND: CommandReply,
    table.TICKET: Ticket,
    table.ROOT: ServiceRoot,
    table.HEALTH: Liveness,
    table.READY: Readiness,
    table.KEYS: KeySet,
}
_BATCH_EXAMPLE: Final = {
    "mode": "ordered",
    "fail_fast": True,
    "operations": [
        {
            "command": "pipeline.create",
            "args": {"name": "nightly", "extractor": "tap-csv", "loader": "target-jsonl"},
            "idempotency_key": "nightly-1",
        },
        {"command": "pipeline.list", "args": {"limit": 10}},
    ],
}
_PARAMETER: Final = re.compile(r"\{(\w+)\}")

Json = dict[str, Any]


def document() -> Json:
    """The whole document."""
    structs: list[type[msgspec.Struct]] = [*_OWN.values(), ExecuteRequest, BatchRequest, BatchResult, BatchEnd, Problem]
    structs += [LogQuery, EventQuery, CommandOptions, Plan]
    structs += [kind for command in COMMANDS.values() for kind in (command.args, command.result)]
    unique = list(dict.fromkeys(structs))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    refs = dict(zip(unique, schemas, strict=True))
    operations: dict[str, Json] = {}
    for resource in table.RESOURCES:
        operations.setdefault(resource.template, {})[resource.method.lower()] = _resource(resource, refs, components)
    for page in table.PAGES:
        operations.setdefault(page.template, {})[page.method.lower()] = _page(page, refs, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FLX API",
            "version": metadata.version("flx-api"),
            "description": "A Meltano project as a service. Live events, and the WebSocket: `/asyncapi.json`.",
        },
        "paths": dict(sorted(operations.items())),
        "components": {
            "schemas": {**components, "CommandName": {"type": "string", "enum": sorted(COMMANDS)}},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "ticket": {"type": "apiKey", "in": "query", "name": "ticket"},
            },
            "responses": _responses(refs[Problem]),
            "headers": _headers(),
        },
    }


def _resource(resource: table.Resource, refs: dict[Any, Json], components: Json) -> Json:
    command = COMMANDS[resource.command]
    properties, required = _properties(command.args, components)
    in_path = set(_PARAMETER.findall(resource.template))
    parameters = _path_parameters(resource.template, properties)
    options, _ = _properties(CommandOptions, components)
    if resource.body == "none":
        parameters += [
            _query(name, schema, required=name in required)
            for name, schema in properties.items()
            if name not in in_path
        ]
        options = {name: schema for name, schema in options.items() if name not in properties}
    parameters += [_query(name, schema) for name, schema in options.items()]
    parameters += _header_parameters(resource, command)
    operation = _operation(
        f"{resource.command} {resource.method} {resource.template}", resource.sentence, resource.template, parameters
    )
    if resource.body != "none":
        left = {name: schema for name, schema in properties.items() if name not in in_path}
        body: Json = {"type": "object", "properties": left, "additionalProperties": False}
        if needed := [name for name in required if name not in in_path]:
            body["required"] = needed
        operation["requestBody"] = {
            "required": resource.body == "required",
            "content": {"application/json": {"schema": body if in_path else refs[command.args]}},
        }
    status = {"created": "201", "accepted": "202"}.get(resource.after, "200")
    plan = {"application/json": {"schema": refs[Plan]}}
    result = {"application/json": {"schema": {"anyOf": [refs[command.result], refs[Plan]]}}}
    answer = {"description": command.sentence, "headers": _header_refs(resource), "content": result}
    if status != "200":
        answer["content"] = {"application/json": {"schema": refs[command.result]}}
    # With `dry_run` the status is 200 and the answer a plan.
    operation["responses"] = {"200": {"description": "What would happen.", "content": plan}, status: answer}
    if resource.after == "accepted":
        operation["responses"]["200"] = {**answer, "description": "With `wait_ms`: it is over."}
    if resource.after in {"waited", "cancelled"}:
        operation["responses"]["202"] = {**answer, "description": "Not over yet."}
    if resource.after == "revision" and resource.method == "GET":
        operation["responses"]["304"] = {"description": "The revision that the client has is the present one."}
    _finish(operation, resource.access, command)
    return operation


def _page(page: table.Page, refs: dict[Any, Json], components: Json) -> Json:
    parameters = _path_parameters(page.template, {})
    if page in {table.COMMAND, table.ROOT_COMMAND}:
        parameters[0]["schema"] = {"$ref": _REF.format(name="CommandName")}
        parameters += [_query(name, schema) for name, schema in _properties(CommandOptions, components)[0].items()]
    if page in {table.COMMAND, table.ROOT_COMMAND, table.EXECUTE}:
        parameters.append(_header("Idempotency-Key", "Sending the same request again with the same key does nothing."))
    if page is table.EVENTS:
        parameters += [_query(name, schema, required=name == "topics") for name, schema in _events(components).items()]
        parameters.append(_header("Last-Event-ID", "The position to go on from, before `from`: browsers send it."))
    if page is table.LOGS:
        parameters += [_query(name, schema) for name, schema in _properties(LogQuery, components)[0].items()]
    operation = _operation(f"{page.method} {page.template}", page.sentence, page.template, parameters)
    bodies: dict[table.Page, Json] = {
        table.EXECUTE: {"schema": refs[ExecuteRequest]},
        table.BATCH: {"schema": refs[BatchRequest], "example": _BATCH_EXAMPLE},
        table.COMMAND: {"schema": {"type": "object"}},
        table.ROOT_COMMAND: {"schema": {"type": "object"}},
    }
    if page in bodies:
        required = page in {table.EXECUTE, table.BATCH}
        operation["requestBody"] = {"required": required, "content": {"application/json": bodies[page]}}
    content = {page.media: {"schema": refs[_OWN[page]] if page in _OWN else {}}}
    if page is table.LOGS:
        content["text/plain"] = {"schema": {"type": "string"}}
    if page is table.BATCH:
        # One a line; the last one is the end.
        content["application/x-ndjson"] = {"schema": {"anyOf": [refs[BatchResult], refs[BatchEnd]]}}
    answer = {"description": page.sentence, "content": content}
    operation["responses"] = {"201" if page is table.TICKET else "200": answer}
    if page in {table.COMMAND, table.ROOT_COMMAND, table.EXECUTE}:
        operation["responses"]["202"] = {**answer, "description": "Accepted: work goes on; see Location."}
    if page is table.READY:
        operation["responses"]["503"] = {**answer, "description": "Not ready, with the reasons."}
    _finish(operation, page.access, None)
    return operation


def _operation(name: str, sentence: str, template: str, parameters: list[Json]) -> Json:
    words = re.findall(r"[A-Za-z0-9]+", name)
    section = template.strip("/").removeprefix("v1/").split("/")[0]
    return {
        "operationId": "_".join(word.lower() for word in words),
        "summary": sentence,
        "tags": [section if section.isalpha() else "service"],
        "parameters": parameters,
    }


def _finish(operation: Json, access: str, command: Command | None) -> None:
    """Security and what can go wrong."""
    if access in {"token", "ticket"}:
        operation["security"] = [{"bearer": []}, *([{"ticket": []}] if access == "ticket" else [])]
        problems = ["400", "401", "403", "404", "408", "409", "412", "413", "415", "422", "429", "500", "503", "504"]
    elif access == "probe":
        operation["security"] = []
        problems = ["400", "500"]
    else:
        operation["security"] = []
        problems = ["400", "401", "404", "408", "413", "415", "422", "429", "500", "503"]
    if command is not None and command.idempotency == "read":
        problems = [status for status in problems if status not in {"408", "409", "412", "413", "415"}]
    for status in problems:
        operation["responses"].setdefault(status, {"$ref": f"#/components/responses/{status}"})


def _properties(kind: type[msgspec.Struct], components: Json) -> tuple[Json, list[str]]:
    schema = components.get(kind.__name__, {})
    return dict(schema.get("properties", {})), list(schema.get("required", []))


def _events(components: Json) -> Json:
    """Parameters of the event stream; a ticket is how one shows who one is, and told there."""
    properties, _ = _properties(EventQuery, components)
    return {name: schema for name, schema in properties.items() if name != "ticket"}


def _path_parameters(template: str, properties: Json) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": properties.get(name, {"type": "string"})}
        for name in _PARAMETER.findall(template)
    ]


def _query(name: str, schema: Json, *, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _header(name: str, sentence: str) -> Json:
    return {"name": name, "in": "header", "required": False, "description": sentence, "schema": {"type": "string"}}


def _header_parameters(resource: table.Resource, command: Command) -> list[Json]:
    parameters: list[Json] = []
    if command.idempotency in {"key", "idempotent"}:
        parameters.append(_header("Idempotency-Key", "Sending the same request again with the same key does nothing."))
    if resource.guarded:
        parameters.append(_header("If-Match", "The revision that must be the present one."))
    if resource.after == "revision" and resource.method == "GET":
        parameters.append(_header("If-None-Match", "The revision that the client has."))
    return parameters


def _header_refs(resource: table.Resource) -> Json:
    names = ["X-Request-ID", "RateLimit", "RateLimit-Policy"]
    if resource.after in {"created", "accepted", "waited"}:
        names.append("Location")
    if resource.after in {"created", "revision"}:
        names.append("ETag")
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _headers() -> Json:
    sentences = {
        "X-Request-ID": "The request's id: the client's own when it is a sane token.",
        "RateLimit": "What is left of the nearest limit, and seconds until it grows.",
        "RateLimit-Policy": "The nearest limit: quota and window in seconds.",
        "Location": "Where what was made or started is found.",
        "ETag": "The revision.",
    }
    return {name: {"description": sentence, "schema": {"type": "string"}} for name, sentence in sentences.items()}


def _responses(schema: Json) -> Json:
    """One problem response for each status, with the codes it may carry."""
    by_status: dict[str, list[str]] = {}
    for code, spec in CODES.items():
        by_status.setdefault(str(spec.http), []).append(f"`{code}`: {spec.title}")
    return {
        status: {
            "description": "; ".join(codes),
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status, codes in sorted(by_status.items())
    }
