"""The web page of a search, served on loopback and protected by a token.

Plotly draws the files that a search writes, in the browser. So the page shows a running search, a
finished one, or one that runs elsewhere on shared storage.
"""

import asyncio
import base64
import hashlib
import hmac
import html
import os
import re
import secrets
import webbrowser
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from aiohttp import web

from nnit_dist.core.errors import NnitError
from nnit_dist.core.files import read_json
from nnit_dist.core.storage import on_disk, private_directory
from nnit_dist.runtime.progress import console
from nnit_dist.runtime.ray_session import cluster_token
from nnit_dist.search.records import NetworkSuccess, PoolFigures, SearchDescription, TrialRecord
from nnit_dist.search.results import POOL, SEARCH, importance, leading, read_trials

PAGE = Path(__file__).with_name("page.html")
PICTURES = {".png", ".mp4"}


def page_key(cluster: str | None) -> str:
    """Token that opens the page; a new one each time if there is no cluster token.

    It is derived from the cluster's token. That token itself must not be stored in a browser,
    because it allows any code to run on the cluster.
    """
    if cluster is None:
        return secrets.token_hex(24)
    return hmac.new(cluster.encode(), b"nnit dashboard", "sha256").hexdigest()


def serve(out: Path, port: int, open_browser: bool = True) -> None:
    """Serve the page of the search in `out` until interrupted.

    Raises:
        NnitError: there is no search, or the port is taken.
    """
    if not (out / SEARCH).exists():
        raise NnitError(f"there is no search in {out}; `nnit tune` writes one.")
    cluster = cluster_token()
    key = page_key(cluster)
    address = f"http://127.0.0.1:{port}/"
    console.print(f"dashboard: {address}?token={key}")
    if open_browser:
        webbrowser.open(_opening_file(f"{address}?token={key}", port).as_uri())
    try:
        web.run_app(application(out, key, cluster), host="127.0.0.1", port=port, print=None)
    except OSError as error:
        raise NnitError(f"port {port} cannot be used ({error.strerror}); name another.") from None


def _opening_file(address: str, port: int) -> Path:
    """A page of this account alone that leads to `address`.

    The browser gets the name of the file: everybody can read the arguments of a process.
    """
    path = private_directory() / f"dashboard-{port}.html"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f'<meta http-equiv="refresh" content="0; url={html.escape(address)}">')
    return path


def application(out: Path, key: str, cluster: str | None = None) -> web.Application:
    """Serve the page, its data and its pictures to requests with `key` or the cluster's token."""
    app = web.Application(middlewares=[_guard(key, cluster)])
    headers = _security_headers()

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers)

    app.on_response_prepare.append(add_headers)
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/plotly.js", _plotly),
            web.get("/data.json", partial(_data, out)),
            web.get("/best/{name}", partial(_picture, out)),
        ]
    )
    return app


class PageData(TypedDict):
    """Data of the page.

    `trials` come without their networks, and `networks` are those of the `leading` trial.
    `pictures` are names of files.
    """

    search: SearchDescription
    trials: list[TrialRecord]
    leading: str | None
    networks: list[NetworkSuccess]
    importance: dict[str, float]
    pool: PoolFigures | None
    pictures: list[str]


def page_data(out: Path) -> PageData:
    """Read the data of the page from the search in `out`."""
    search: SearchDescription = read_json(out / SEARCH)
    trials, pool = read_trials(out), out / POOL
    best = leading(trials)
    networks = best["rungs"][-1]["networks"] if best else []
    for trial in trials:
        for rung in trial["rungs"]:
            rung.pop("networks", None)
    return {
        "search": search,
        "trials": trials,
        "leading": best["name"] if best else None,
        "networks": networks,
        "importance": importance(trials, search["distributions"]),
        "pool": read_json(pool) if pool.exists() else None,
        "pictures": sorted(p.name for p in (out / "best").glob("[!.]*") if _is_picture(p)),
    }


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _guard(key: str, cluster: str | None) -> Any:
    """Admit requests that carry the key in the address, in a cookie, or as a bearer token.

    The cluster's token is accepted only as a bearer token.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # Cookies are shared by all ports of a host, so the name holds the port.
        cookie = f"nnit_token_{request.url.port}"
        brought = [request.query.get("token", ""), request.cookies.get(cookie, ""), bearer]
        allowed = any(_same(token, key) for token in brought) or (
            cluster and _same(bearer, cluster)
        )
        if not allowed:
            raise web.HTTPUnauthorized(text="It wants the token that `nnit dashboard` shows.")
        if "token" in request.query:  # keep it out of the address bar and the history
            # One slash: `//host/` would lead to another host.
            redirect = web.HTTPSeeOther("/" + request.path.lstrip("/\\"))
            redirect.set_cookie(cookie, key, httponly=True, samesite="Strict")
            return redirect
        response = await handler(request)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return check


def _same(brought: str, expected: str) -> bool:
    return hmac.compare_digest(brought.encode(errors="surrogateescape"), expected.encode())


def _security_headers() -> dict[str, str]:
    """Headers that let the page run its own script alone, and no page show it in a frame."""
    (script,) = re.findall(r"<script>(.*?)</script>", PAGE.read_text(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
    }


def _is_picture(path: Path) -> bool:
    """Whether it is a picture or a film, and no link to another file."""
    return path.suffix in PICTURES and path.is_file() and not (on_disk(path) and path.is_symlink())


async def _plotly(request: web.Request) -> web.Response:
    from plotly.offline import get_plotlyjs

    kept = {"Cache-Control": "private, max-age=3600"}  # four megabytes that do not change
    return web.Response(text=get_plotlyjs(), content_type="text/javascript", headers=kept)


async def _page(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(PAGE)


async def _data(out: Path, request: web.Request) -> web.StreamResponse:
    return web.json_response(await asyncio.to_thread(page_data, out))


async def _picture(out: Path, request: web.Request) -> web.StreamResponse:
    path = out / "best" / Path(request.match_info["name"]).name
    if not _is_picture(path):
        raise web.HTTPNotFound
    kind = "video/mp4" if path.suffix == ".mp4" else "image/png"
    return web.Response(body=path.read_bytes(), content_type=kind)
