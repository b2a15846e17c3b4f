"""`/docs`: every operation of the OpenAPI document on one page, for eyes.

A page of our own, since FastAPI's loads scripts from elsewhere; this one has none.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, TypeAlias

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

Document: TypeAlias = Mapping[str, Any]  # Any: JSON

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font: 14px/1.5 ui-monospace, monospace } td { padding: 0.1rem 1rem 0.1rem 0 }
td { vertical-align: top } td:first-child { white-space: nowrap } h2 { margin-top: 2rem }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } a { color: #8cf } }
"""


def overview_router(document: Callable[[], Document]) -> APIRouter:
    """Make the route. document: gives the OpenAPI document."""
    router = APIRouter()

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Show what can be asked here."""
        return HTMLResponse(_page(document()), headers={"content-security-policy": POLICY})

    return router


def _page(document: Document) -> str:
    tables: dict[str, list[str]] = defaultdict(list)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tables[operation["tags"][0]].append(_row(method, path, operation))
    body = "".join(
        f"<h2>{escape(tag)}</h2><table>{''.join(rows)}</table>" for tag, rows in tables.items()
    )
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f'<h1>{title}</h1><p>For programs: <a href="openapi.json">openapi.json</a>.</p>{body}'
    )


def _row(method: str, path: str, operation: Document) -> str:
    given = ", ".join(one["name"] for one in operation.get("parameters", ()) if one["in"] != "path")
    query = f"?{given}" if given else ""
    return (
        f"<tr><td><code>{method.upper()} {escape(path)}</code><td>"
        f"{escape(operation.get('description', ''))} <code>{escape(query)}</code>"
        f"{_body(operation)}</tr>"
    )


def _body(operation: Document) -> str:
    """The fields of a body, to be folded out; those of each kind where there are two."""
    content = operation.get("requestBody", {}).get("content", {})
    said = content.get("application/json", {}).get("schema", {})
    kinds = said.get("anyOf", [said] if said else [])
    return "".join(
        f"<details><summary>{len(kind['properties'])} fields</summary>"
        f"<table>{_fields(kind)}</table></details>"
        for kind in kinds
    )


def _fields(kind: Document) -> str:
    required = kind.get("required", ())
    return "".join(
        f"<tr><td><code>{escape(name)}</code>{' (needed)' * (name in required)}"
        f"<td>{escape(_kind(one))}<td>{escape(one['description'])}</tr>"
        for name, one in kind["properties"].items()
    )


def _kind(one: Document) -> str:
    """What may stand in a field, briefly."""
    if "enum" in one:
        return ", ".join(one["enum"])
    if "minimum" in one:
        return f"{one['type']}, {one['minimum']:g} to {one['maximum']:g}"
    return str(one.get("type", ""))
