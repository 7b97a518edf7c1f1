"""The page of a search: live while it runs, on loopback, behind a token.

Plotly draws it in the browser; what it draws are the files that a search writes, so that a search
that is over, or runs elsewhere on shared storage, is shown alike.
"""

import asyncio
import hmac
import os
import secrets
import webbrowser
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from nnit_dist.artifacts import read_json
from nnit_dist.errors import NnitError
from nnit_dist.progress import console
from nnit_dist.tune.results import POOL, SEARCH, importance, read_trials

PAGE = Path(__file__).with_name("page.html")
COOKIE = "nnit_token"
PICTURES = {".png", ".mp4"}


def token() -> str:
    """The cluster's (`RAY_AUTH_TOKEN`, or its file), or one of this process's own."""
    if found := os.environ.get("RAY_AUTH_TOKEN"):
        return found
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return path.read_text().strip() if path.exists() else secrets.token_urlsafe(24)


def serve(out: Path, port: int, open_browser: bool = True) -> None:
    """Serve the page of the search in `out` until interrupted.

    Raises:
        NnitError: there is no search, or the port is taken.
    """
    if not (out / SEARCH).exists():
        raise NnitError(f"there is no search in {out}; `nnit tune` writes one.")
    key = token()
    address = f"http://127.0.0.1:{port}/"
    console.print(f"dashboard: {address}?token={key}")
    if open_browser:
        webbrowser.open(f"{address}?token={key}")
    try:
        web.run_app(application(out, key), host="127.0.0.1", port=port, print=None)
    except OSError as error:
        raise NnitError(f"port {port} cannot be used ({error.strerror}); name another.") from None


def application(out: Path, key: str) -> web.Application:
    """The page, its data and its pictures; whoever lacks `key` is refused."""
    app = web.Application(middlewares=[_guard(key)])
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/plotly.js", _plotly),
            web.get("/data.json", partial(_data, out)),
            web.get("/best/{name}", partial(_picture, out)),
        ]
    )
    return app


def page_data(out: Path) -> dict[str, Any]:
    """What the page shows: the trials, but not the figures of each network, which are many."""
    search, trials, pool = read_json(out / SEARCH), read_trials(out), out / POOL
    for trial in trials:
        for rung in trial["rungs"]:
            rung.pop("networks", None)
    return {
        "search": search,
        "trials": trials,
        "importance": importance(trials, search["distributions"]),
        "pool": read_json(pool) if pool.exists() else None,
        "pictures": sorted(p.name for p in (out / "best").glob("*") if p.suffix in PICTURES),
    }


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _guard(key: str) -> Any:
    """Lets those in who bring the token, in the address once, as a cookie, or as a bearer."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        brought = [request.query.get("token", ""), request.cookies.get(COOKIE, ""), bearer]
        if not any(hmac.compare_digest(one.encode(), key.encode()) for one in brought):
            raise web.HTTPUnauthorized(text="It wants the token that `nnit dashboard` shows.")
        if "token" in request.query:  # keep it out of the address bar and the history
            found = web.HTTPSeeOther(request.path)
            found.set_cookie(COOKIE, key, httponly=True, samesite="Strict")
            return found
        response = await handler(request)
        response.headers["Cache-Control"] = "no-store"
        return response

    return check


async def _plotly(request: web.Request) -> web.Response:
    from plotly.offline import get_plotlyjs

    return web.Response(text=get_plotlyjs(), content_type="text/javascript")


async def _page(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(PAGE)


async def _data(out: Path, request: web.Request) -> web.StreamResponse:
    return web.json_response(await asyncio.to_thread(page_data, out))


async def _picture(out: Path, request: web.Request) -> web.StreamResponse:
    path = out / "best" / Path(request.match_info["name"]).name
    if path.suffix not in PICTURES or not path.exists():
        raise web.HTTPNotFound
    return web.FileResponse(path)
