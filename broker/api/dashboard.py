# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dashboard's files, read once and answered from memory: no path in a request is used as a
file's path. The page loads nothing from other sites, and its policy lets it do nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent / "page"
#: Path in the URL -> file and its type.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/runbook.html": ("runbook.html", "text/html; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'"
)


class Dashboard:
    """Serves the page; OSError where the installation lacks one of its files."""

    def __init__(self) -> None:
        self._answers = {}
        for path, (name, kind) in FILES.items():
            content = (FOLDER / name).read_bytes()
            self._answers[path] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:20]}"'

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes of the page."""
        for path in FILES:
            router.add_get(path, self._get)

    async def _get(self, request: web.Request) -> web.Response:
        content, kind, tag = self._answers[request.path]
        headers = {
            "Content-Type": kind,
            "Content-Security-Policy": POLICY,
            "ETag": tag,
            "Cache-Control": "no-cache",
        }
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=content, headers=headers)
