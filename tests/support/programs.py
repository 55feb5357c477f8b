"""Programs of the system that some tests need beside Python."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str, package: str) -> str:
    """Return where a program is. Without it the test is skipped, but in CI it fails."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"no {name} found: `apt-get install {package}`")
    return str(found)
