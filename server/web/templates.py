"""The pages' templates, and the version of the files that pages load."""

from __future__ import annotations

import hashlib
from typing import Final

import aiohttp_jinja2
import jinja2
from aiohttp import web

from server import resources
from server.web.keys import RENDERED, STATIC_VERSION

# Read once: a process shows the pages that belong to its code, whatever becomes of the files while it runs.
_TEMPLATES: Final = {
    path.name: path.read_text(encoding="utf-8") for path in sorted(resources.folder("templates").iterdir())
}


def add_templates(app: web.Application) -> None:
    """Have this application render pages."""
    app[STATIC_VERSION], app[RENDERED] = _static_version(), {}
    aiohttp_jinja2.setup(
        app,
        loader=jinja2.DictLoader(_TEMPLATES),
        autoescape=True,
        enable_async=True,
        undefined=jinja2.StrictUndefined,
    )


def _static_version() -> str:
    digest = hashlib.sha256()
    for path in resources.static_files().values():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
