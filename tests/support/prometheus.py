"""Debian's Prometheus beside a test, which collects what a Ray of the test's process exports."""

import json
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

Ask = Callable[[str], list[float]]
CONFIG = """
scrape_configs:
  - job_name: ray
    scrape_interval: 500ms
    scrape_timeout: 500ms
    file_sd_configs: [{files: [targets.json]}]
"""


@contextmanager
def collecting(directory: Path) -> Iterator[Ask]:
    """Collect from every Ray that is started within the block. Yields what asks for the values
    that an expression has had since, of all its series; it serves after the block's Rays too.
    """
    (directory / "prometheus.yml").write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=metrics"]
    log = (directory / "prometheus.log").open("w")
    server = subprocess.Popen(
        [*command, f"--web.listen-address={address}"], cwd=directory, stdout=log, stderr=log
    )
    ended, began = threading.Event(), time.time()

    def look() -> None:
        while not ended.wait(0.2):
            with suppress(Exception):  # there is none, or it ends
                nodes = [f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in ray.nodes()]
                (directory / "targets.json").write_text(json.dumps([{"targets": nodes}]))

    def ask(expression: str) -> list[float]:
        asked = {"query": expression, "start": began, "end": time.time(), "step": 1}
        query = f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(query, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return [float(value) for series in found for _, value in series["values"]]

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield ask
    finally:
        ended.set()
        looking.join()
        server.kill()
        server.wait()
        log.close()
