"""The review as a page in the steward's browser: on loopback only, behind a random token, without scripts.

Every request must name this server in its Host header (else a web page elsewhere could reach it by its own name) and
carry the token in its path. A verdict is a POST of a form whose field repeats a second secret, which no other page
can read, from an Origin that is this server or none.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from cloister.cli.output import size
from cloister.cli.site_review import bounds_text, budget_text, jobs_seen, page_of
from cloister.site.settings import SiteFolder

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",  # the token stands in the address
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MAX_FORM_BYTES = 8192


def application(here: SiteFolder, port: int, token: str) -> Starlette:
    """Args: port: that it is served on, for the Host check. token: in every path."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
    form_secret = secrets.token_urlsafe(24)
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True, default_for_string=True),
    )
    pages.filters |= {"size": size, "bounds": bounds_text, "budget": budget_text}

    def guarded(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def check(request: Request) -> Response:
            same = hmac.compare_digest(request.path_params["token"].encode(), token.encode())
            if request.headers.get("host") not in hosts or not same:
                return PlainTextResponse("not found", 404, HEADERS)
            response: Response = await answer(request)
            response.headers.update(HEADERS)
            return response

        return check

    async def overview(request: Request) -> Response:
        seen = jobs_seen(here)
        template = pages.get_template("review.html.j2")
        settings = here.settings()
        return HTMLResponse(
            template.render(site=settings.id, federation=settings.federation, jobs=seen, page=None, token=token)
        )

    async def one(request: Request) -> Response:
        seen = next((job for job in jobs_seen(here) if job["job"] == request.path_params["job"]), None)
        if seen is None:
            return PlainTextResponse("there is no such job", 404)
        settings, template = here.settings(), pages.get_template("review.html.j2")
        shown = {"site": settings.id, "federation": settings.federation, "jobs": jobs_seen(here), "token": token}
        return HTMLResponse(template.render(**shown, page=page_of(here, seen), form_secret=form_secret))

    async def verdict(request: Request) -> Response:
        from cloister.site.steward import decide

        origin = request.headers.get("origin")
        body = await request.body()
        form = {key: values[0] for key, values in parse_qs(body[:MAX_FORM_BYTES].decode("utf-8", "replace")).items()}
        ours = origin in (None, "null", *(f"http://{host}" for host in hosts))
        known = request.path_params["job"] in {job["job"] for job in jobs_seen(here)}
        if not ours or not hmac.compare_digest(form.get("secret", ""), form_secret):
            return PlainTextResponse("this form is not from this page", 403)
        if not known or form.get("verdict") not in ("approved", "denied"):
            return PlainTextResponse("there is no such job or verdict", 404)
        word = "approved" if form["verdict"] == "approved" else "denied"
        decide(here.root, request.path_params["job"], word, form.get("reason", "")[:500])  # type: ignore[arg-type]
        return RedirectResponse(f"/{token}/{request.path_params['job']}", 303)

    return Starlette(
        routes=[
            Route("/{token}/", guarded(overview)),
            Route("/{token}/{job}", guarded(one)),
            Route("/{token}/{job}", guarded(verdict), methods=["POST"]),
        ]
    )


def serve(here: SiteFolder, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves the page on loopback until Ctrl-C. Args: port: 0 for any. on_ready: told the address, token and all."""
    import uvicorn

    with socket.create_server(("127.0.0.1", port)) as listening:
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        config = uvicorn.Config(
            application(here, port, token), log_level="error", access_log=False, server_header=False, lifespan="off"
        )
        on_ready(f"http://127.0.0.1:{port}/{token}/")
        uvicorn.Server(config).run(sockets=[listening])
