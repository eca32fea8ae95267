"""Reference pages of the API, from its OpenAPI description: static text, without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from ccp.cli.documentation.markdown import code, one_line, table

Schema = Mapping[str, Any]


class Group(NamedTuple):
    """The operations of one page. prefix: of their paths; the first group whose prefix fits has an operation."""

    page: str
    title: str
    prefix: str
    introduction: str


GROUPS: Final = (
    Group("webhooks", "Webhooks", "/opnc/v1/event/", "Subscriptions to events, for eMSPs and OEMs."),
    Group(
        "received-events",
        "Events of other systems",
        "/opnc/v1/ccp/events/",
        "What a Provisioning Certificate Pool and other systems post to this pool.",
    ),
    Group("opnc", "OPNC", "/opnc/", "The contract operations of OPNC 1.0."),
    Group("opcp", "OPCP", "/v1/", "The operations of OPCP 1.0, the predecessor of OPNC."),
    Group("ocpp", "OCPP", "/ocpp/", "The certificate request of OCPP 2.0.1 and 2.1, for charging back ends."),
    Group("est", "EST", "/.well-known/", "Enrolment of charging stations at a CA, RFC 7030."),
    Group("admin", "Administration", "/admin/", "The registers of parties and peers, for parties with the role admin."),
)


def api_pages(document: Schema) -> dict[str, str]:
    """The Markdown of each page, by its file name, of an OpenAPI description of version 3.1."""
    groups: dict[Group, list[str]] = {group: [] for group in GROUPS}
    rows: dict[Group, list[list[str]]] = {group: [] for group in GROUPS}
    for path, methods in document["paths"].items():
        group = next(group for group in GROUPS if path.startswith(group.prefix))
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            groups[group].append(_operation(name, operation))
            rows[group].append([f"[{code(name)}]({group.page}.md#{_anchor(operation)})", _summary(operation)])
    pages = {
        f"{group.page}.md": "\n".join((f"# {group.title}\n", f"{group.introduction}\n", *groups[group]))
        for group in GROUPS
    }
    index = [
        "# API\n",
        "Every operation needs an access token as bearer, from `POST /oauth/token` with the party's client id and "
        "secret: see [An access token](../../integrating.md#an-access-token). The pool serves the machine-readable "
        "description at `/openapi.json`.\n",
    ]
    for group in GROUPS:
        index += [f"## {group.title}\n", table(["operation", "does"], rows[group])]
    return {"index.md": "\n".join(index), "schemas.md": _schemas(document["components"]["schemas"]), **pages}


def _anchor(operation: Schema) -> str:
    return str(operation["operationId"]).lower()


def _summary(operation: Schema) -> str:
    return one_line(operation.get("description") or operation.get("summary", "")).partition(". ")[0]


def _operation(name: str, operation: Schema) -> str:
    parts = [
        f"## {code(name)} {{ #{_anchor(operation)} }}\n",
        f"{operation.get('description') or operation['summary']}\n",
    ]
    if roles := sorted({role for need in operation.get("security", ()) for role in need.get("oauth2", ())}):
        parts.append(f"Roles: {', '.join(code(role) for role in roles)}.\n")
    if parameters := operation.get("parameters"):
        rows = [
            [
                code(each["name"]),
                each["in"],
                _type(each["schema"]),
                _needed(each),
                one_line(each.get("description", "")),
            ]
            for each in parameters
        ]
        parts += ["**Parameters**\n", table(["name", "in", "value", "", "meaning"], rows)]
    if content := operation.get("requestBody", {}).get("content"):
        parts += ["**Body**\n", *(f"- {code(kind)}: {_type(each['schema'])}" for kind, each in content.items()), ""]
    rows = [[code(status), _reason(status), _content(each)] for status, each in sorted(operation["responses"].items())]
    return "\n".join((*parts, "**Responses**\n", table(["status", "", "body"], rows)))


def _needed(parameter: Schema) -> str:
    return "required" if parameter.get("required") else "optional"


def _reason(status: str) -> str:
    return HTTPStatus(int(status)).phrase if status.isdigit() else ""


def _content(response: Schema) -> str:
    return ", ".join(_type(each.get("schema", {})) for each in response.get("content", {}).values())


def _type(schema: Schema) -> str:
    """The type of a value in words, with its limits; links to components."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](schemas.md#{name.lower()})"
    for combination in ("anyOf", "oneOf", "allOf"):
        if combination in schema and not schema.get("type"):
            return " or ".join(dict.fromkeys(_type(each) for each in schema[combination]))
    if "const" in schema:
        return code(str(schema["const"]))
    if "enum" in schema:
        return " or ".join(code(str(value)) for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return ", ".join((kind, *_limits(schema)))


def _limits(schema: Schema) -> Iterator[str]:
    low, high = schema.get("minLength"), schema.get("maxLength")
    if low is not None or high is not None:
        bounds = f"{low}" if low == high else f"{low or 0} to {high}" if high is not None else f"at least {low}"
        yield f"{bounds} characters"
    if "format" in schema:
        yield str(schema["format"])
    if "pattern" in schema:
        yield code(schema["pattern"])
    for key, word in (("minimum", "at least"), ("maximum", "at most")):
        if key in schema:
            yield f"{word} {schema[key]}"


def _schemas(schemas: Mapping[str, Schema]) -> str:
    parts = ["# Schemas of the API\n", "The JSON objects that the operations take and return.\n"]
    for name, schema in sorted(schemas.items()):
        parts += [f"## {name} {{ #{name.lower()} }}\n", f"{schema.get('description', '')}\n"]
        if properties := schema.get("properties"):
            required = schema.get("required", ())
            rows = [
                [
                    code(member),
                    _type(each),
                    "required" if member in required else "optional",
                    one_line(each.get("description", "")),
                ]
                for member, each in properties.items()
            ]
            parts.append(table(["member", "value", "", "meaning"], rows))
        else:
            parts.append(f"{_type(schema)}\n")
    return "\n".join(parts)
