"""The page of a search: who sees it, and what a browser shows."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from support.searches import ROOT, fake_search

from nnit_dist.core.files import read_json, write_json
from nnit_dist.search.dashboard import _opening_file, page_key
from nnit_dist.search.results import read_trials


def test_a_key_opens_the_page_and_tells_nothing_of_the_clusters_token():
    assert page_key("token") == page_key("token") != page_key("other")
    assert page_key(None) != page_key(None)
    assert "token" not in page_key("token")


@pytest.fixture
def served(tmp_path):
    """The page of a search of a thousand trials, and its address."""
    fake_search(tmp_path, 1000)
    command = [sys.executable, "-m", "nnit_dist", "dashboard", str(tmp_path), "--no-browser"]
    env = {**os.environ, "RAY_AUTH_TOKEN": "secret-of-the-cluster", "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [*command, "--port", "8271"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    said = server.stdout.readline().split("?token=")
    assert said[0] == "dashboard: http://127.0.0.1:8271/"
    assert "secret-of-the-cluster" not in said[1]
    deadline = time.monotonic() + 30
    while get(server_address("")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield tmp_path, said[1].strip()
    server.terminate()
    server.wait(timeout=10)


def server_address(path: str) -> str:
    return f"http://127.0.0.1:8271/{path}"


def get(address: str, **headers: str) -> tuple[int, bytes] | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return None


def test_the_page_is_for_those_with_the_token(served):
    out, _ = served
    wrong = "", "data.json", "plotly.js", "best/policies.mp4", "?token=", "?token=wrong"
    for path in (*wrong, "?token=secret-of-the-cluster"):
        assert get(server_address(path))[0] == 401, path
    known = {"Authorization": "Bearer secret-of-the-cluster"}
    status, body = get(server_address("data.json"), **known)
    assert status == 200
    assert len(json.loads(body)["trials"]) == 1000
    (out / "best").mkdir()
    (out / "best" / "weights.png").write_bytes(b"picture")
    assert get(server_address("best/weights.png"), **known) == (200, b"picture")
    (out / "best" / "linked.png").symlink_to(out / "search.json")
    for name in ("..%2Fsearch.json", "other.png", "search.json", "linked.png"):
        assert get(server_address(f"best/{name}"), **known)[0] == 404
    assert json.loads(get(server_address("data.json"), **known)[1])["pictures"] == ["weights.png"]


def raw(request: bytes) -> bytes:
    """The answer to a request that no library would send."""
    with socket.create_connection(("127.0.0.1", 8271), timeout=10) as connection:
        connection.sendall(request + b"\r\nHost: 127.0.0.1:8271\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_strange_requests_are_refused_and_nobody_is_led_elsewhere(served):
    _, key = served
    for header in (b"Authorization: Bearer \xff\xfe", b"Cookie: nnit_token_8271=\xff"):
        assert raw(b"GET / HTTP/1.1\r\n" + header).startswith(b"HTTP/1.1 401")
    for path in (b"//evil.example/", b"/\\evil.example/", b"///evil.example"):
        answer = raw(b"GET " + path + b"?token=" + key.encode() + b" HTTP/1.1")
        (place,) = re.findall(rb"Location: (.*)\r", answer) or [b"/"]
        assert re.match(rb"/[^/\\]", place + b"x"), answer
    page = raw(b"GET / HTTP/1.1\r\nAuthorization: Bearer " + key.encode())
    for header in (b"Content-Security-Policy: default-src 'none'", b"nosniff", b"DENY"):
        assert header in page
        assert header in raw(b"GET / HTTP/1.1")


def test_a_browser_is_started_with_a_private_file_and_not_with_the_key():
    path = _opening_file("http://127.0.0.1:1/?token=secret", 1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "token=secret" in path.read_text()
    assert "secret" not in path.as_uri()
    path.unlink()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_shows_a_thousand_trials(served):
    from playwright.sync_api import sync_playwright

    (out, key), errors = served, list[str]()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server_address(f"?token={key}"))
        page.wait_for_selector("body[data-drawn='1000']")
        assert "token" not in page.url
        rows = page.locator("#trials tr")
        assert rows.count() == 1001
        best = max(read_trials(out), key=lambda t: (len(t["rungs"]), t["success"]))
        assert page.locator("#trials tr.best td").first.inner_text() == best["name"]
        page.locator("#trials th", has_text="loss").click()
        shown = [float(text) for text in page.locator("#trials td:nth-child(5)").all_inner_texts()]
        assert shown == sorted(shown, reverse=True)
        assert page.locator("#importance .bars .point").count() == 3
        assert page.locator("#networks .point").count() == 3 + 3  # all lie on the front
        # It is live: what is written while it is open appears.
        write_json(out / "new" / "trial.json", read_json(out / "0000" / "trial.json"))
        page.wait_for_selector("body[data-drawn='1001']")
        browser.close()
    assert errors == []
