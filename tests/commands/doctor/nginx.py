"""nginx in front of a server, set up as somebody might."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.facts import until
from tests.support.ports import free_port
from tests.support.programs import program

_SETTINGS = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  {site}
}}
"""
_SITE = """
  server {{
    listen 127.0.0.1:{port}{listen};
    location / {{ proxy_pass http://127.0.0.1:{server}; {directives} }}
  }}
"""


@contextlib.asynccontextmanager
async def nginx(folder: Path, server: int, directives: str, tls: tuple[Path, Path] | None = None) -> AsyncIterator[str]:
    """Run nginx in front of the server at this port for the block; gives its URL. `tls`: a certificate and its key."""
    port = free_port()
    listen = f" ssl; ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]}" if tls else ""
    async with running(folder, port, _SITE.format(port=port, listen=listen, server=server, directives=directives)):
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def running(folder: Path, port: int, site: str) -> AsyncIterator[None]:
    """Run nginx for the block, with these settings of a site that listens on this port."""
    command = program("nginx", "nginx-light")
    settings = folder / "nginx.conf"
    settings.write_text(_SETTINGS.format(folder=folder, site=site))
    process = await asyncio.create_subprocess_exec(command, "-e", "stderr", "-p", folder, "-c", settings)
    try:
        await until(lambda: process.returncode is not None or _accepts(port))
        assert process.returncode is None, f"nginx ended with {process.returncode}"
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
