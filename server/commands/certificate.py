"""A certificate of one's own, for trying https on one's own machine."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trustme

_DAYS: Final = 90
_CLOCKS_DIFFER: Final = dt.timedelta(minutes=5)


def make(folder: Path, names: Sequence[str]) -> int:
    """Write a certificate, and say by which settings it is used."""
    certificate, key = write_certificate(folder, names)
    print(f"LONGPOLL_SERVER__TLS_CERTIFICATE={certificate}\nLONGPOLL_SERVER__TLS_KEY={key}")
    return 0


def write_certificate(folder: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """Write `certificate.pem` and `key.pem` for these host names and addresses; returns their paths.

    The first holds the certificate and that of the authority that signed it, which is for whoever is to trust it. The
    authority's key is kept nowhere: it signs nothing else.
    """
    now = dt.datetime.now(dt.UTC)
    authority = trustme.CA()
    issued = authority.issue_cert(*names, not_before=now - _CLOCKS_DIFFER, not_after=now + dt.timedelta(days=_DAYS))
    folder.mkdir(parents=True, exist_ok=True)
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    chain = [*issued.cert_chain_pems, authority.cert_pem]
    certificate_path.write_bytes(b"".join(pem.bytes() for pem in chain))
    key_path.unlink(missing_ok=True)
    with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(issued.private_key_pem.bytes())
    return certificate_path, key_path
