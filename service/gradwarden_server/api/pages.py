"""What browsers get: the dashboard, runbooks, and a page about this API. Plain and offline."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from markdown_it import MarkdownIt

from gradwarden_server import assets
from gradwarden_server.api.deps import PartsDep
from gradwarden_server.api.front import HEADERS
from gradwarden_server.api.problems import Problem

router = APIRouter(include_in_schema=False)

_FOREVER = "public, max-age=31536000, immutable"
_HASHED = re.compile(r"-[A-Za-z0-9_-]{8}\.[a-z0-9]+\Z")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "li{margin:.4rem 0}code{font-family:monospace;overflow-wrap:anywhere}"
    "button{font:inherit;padding:.8rem 1.6rem;width:100%;cursor:pointer}"
    "pre{overflow-x:auto}h1{overflow-wrap:anywhere}"
    "@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e6e6}a{color:#8ab4f8}}"
)
_NOT_BUILT = (
    "<p>The dashboard was not built into this checkout. Build it with:</p>"
    "<p><code>python dashboards/build_web.py</code></p>"
    "<p>and load this page again. An installed wheel always has it. The API works without it: "
    '<a href="/docs">see its pages</a>.</p>'
)
_MARKDOWN = MarkdownIt("commonmark", {"html": False})
_LOOKED_AT = ["GET", "HEAD"]  # the server leaves the body of an answer to HEAD out
_OURS = ("v1/", "l/", "api/", "-/", "assets/", "runbooks/", "metrics")


@router.api_route("/-/page.css", methods=_LOOKED_AT)
async def style() -> Response:
    """The style of the pages below; a file of its own because inline styles are refused."""
    return Response(_STYLE, media_type="text/css", headers={"Cache-Control": "max-age=3600"})


@router.api_route("/docs", methods=_LOOKED_AT)
async def docs(request: Request) -> HTMLResponse:
    """Every operation of the API, from its OpenAPI document."""
    document = request.app.openapi()
    rows = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            name = html.escape(f"{method.upper()} {path}")
            summary = html.escape(operation.get("summary", ""))
            detail = html.escape(operation.get("description", ""))
            rows.append(f"<h3><code>{name}</code></h3><p><b>{summary}.</b> {detail}</p>")
    link = '<p>For tools: <a href="/openapi.json">openapi.json</a></p>'
    return page("API of gradwarden", link + "".join(rows))


@router.api_route("/runbooks/{slug}", methods=_LOOKED_AT)
async def runbook(slug: Annotated[str, Path(max_length=100)], request: Request) -> Response:
    """A runbook to read at three in the morning; its source for ``Accept: text/markdown``."""
    slug = slug.removesuffix(".md")  # as runbooks link to each other
    file = assets.RUNBOOKS / f"{slug}.md"
    if not slug.replace("-", "").replace("_", "").isalnum() or not file.is_file():
        raise Problem("not-found", f"runbook: {slug[:100]!r}; there is none of that name")
    text = file.read_text(encoding="utf-8")
    if "text/markdown" in request.headers.get("accept", ""):
        return Response(text, media_type="text/markdown; charset=utf-8")
    return page(slug, _MARKDOWN.render(text.removeprefix(f"# {slug}\n")))


@router.api_route("/assets/{name:path}", methods=_LOOKED_AT)
async def asset(name: str) -> Response:
    """A file of the dashboard; where its name holds its hash it may be kept for ever."""
    file = _inside(assets.WEB / "assets", name)
    if file is None:
        raise Problem("not-found", f"asset: {name[:100]!r}; load the page again")
    keep = _FOREVER if _HASHED.search(name) else "no-cache"
    return FileResponse(file, headers={"Cache-Control": keep})


@router.api_route("/{path:path}", methods=_LOOKED_AT)
async def dashboard(path: str, request: Request, parts: PartsDep) -> Response:
    """The single page app under every path of its own; files of its root beside it."""
    if path.startswith(_OURS):
        if request.method == "HEAD":  # this route takes it before one that only knows GET
            raise Problem("method-not-allowed", "HEAD: ask with GET")
        raise Problem("not-found", f"path: {'/' + path[:200]!r}; see /docs for what there is")
    file = _inside(assets.WEB, path) if path and "/" not in path else None
    index = assets.WEB / "index.html"
    if file is None and not index.is_file():
        return page("gradwarden is running", _NOT_BUILT, 503)
    headers = {"Cache-Control": "no-cache"}
    if path.startswith("embed/"):
        headers |= _framed(parts.settings.embed_origins)
    return FileResponse(file or index, headers=headers)


def _framed(origins: str) -> dict[str, str]:
    """The headers of a page that pages of these origins may hold in a frame."""
    policy = HEADERS["Content-Security-Policy"]
    framed = policy.replace("frame-ancestors 'none'", f"frame-ancestors {origins}")
    # Browsers that know the policy pass over the older header.
    return {"Content-Security-Policy": framed, "X-Frame-Options": "SAMEORIGIN"}


def _inside(folder: FilePath, name: str) -> FilePath | None:
    """The file of that name, if it lies in the folder; names come from strangers."""
    if "\x00" in name or len(name) > 300:
        return None
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) and file.is_file() else None


def page(
    title: str, body: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """A plain page; ``body`` is HTML."""
    name = html.escape(title)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="stylesheet" href="/-/page.css"><h1>{name}</h1>{body}</html>',
        status,
        headers,
    )
