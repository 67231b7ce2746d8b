# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's Prometheus on the lab's network, scraping every host with our rules: what an
operator's own would see."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .cluster import Cluster
from .errors import LabError
from .layout import API_PORT, CHECKOUT, GATEWAY
from .namespaces import connect_within

PORT = 9090
JOB = "lab"
RULES = CHECKOUT / "packaging" / "prometheus" / "ha-agent.rules.yml"
READY_S = 30.0
ANSWER_BYTES_MAX = 4 << 20


class Prometheus:
    """A running one; ask it by `query`."""

    def __init__(self, switch_pid: int, targets: int) -> None:
        self._switch_pid = switch_pid
        self._targets = targets

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query, now."""
        answer = self._get(f"/api/v1/query?query={quote(expression)}")
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The value of a query with at most one series; None: it has none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        alerts = self._get("/api/v1/alerts")["data"]["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def is_ready(self) -> bool:
        """Whether it answers, and has scraped every host."""
        try:
            return self.value("sum(up)") == self._targets
        except (OSError, ValueError):
            return False

    def _get(self, path: str) -> Any:
        received = b""
        with connect_within(self._switch_pid, (GATEWAY, PORT), 2.0) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {GATEWAY}\r\n\r\n".encode())
            while len(received) < ANSWER_BYTES_MAX and (chunk := connection.recv(65536)):
                received += chunk
        return json.loads(received.partition(b"\r\n\r\n")[2])


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Prometheus]:
    """Up and scraping all hosts each second; LabError where it does not come up."""
    switch = cluster.switch_pid
    targets = [f"{cluster.layout.host(n).address}:{API_PORT}" for n in cluster.settings.host_ids()]
    with tempfile.TemporaryDirectory(prefix="ha-prometheus-") as folder:
        config = Path(folder) / "prometheus.yml"
        # JSON is YAML.
        every = {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
        jobs = [{"job_name": JOB, "static_configs": [{"targets": targets}]}]
        config.write_text(
            json.dumps({"global": every, "rule_files": [str(RULES)], "scrape_configs": jobs})
        )
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(
                [
                    *("nsenter", "-t", str(switch), "-n", "--", "prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={GATEWAY}:{PORT}",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            try:
                found = Prometheus(switch, len(targets))
                deadline_s = time.monotonic() + READY_S
                while not found.is_ready():
                    if process.poll() is not None or time.monotonic() > deadline_s:
                        log.seek(0)
                        raise LabError(f"Prometheus does not scrape: {log.read()[-2000:]}")
                    time.sleep(0.2)
                yield found
            finally:
                process.terminate()
                process.wait(20.0)
