"""The data folder: looked at once, before anything is begun that would need it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from server.errors import ConfigurationError
from server.storage.embedded.binaries import create_folders


def prepare(data_dir: str) -> None:
    """Create the folder if there is none, and see that a file can be written there.

    Raises:
        ConfigurationError: it can't be used; the message says why.
    """
    folder = Path(data_dir).absolute()
    try:
        # Postgres, which root runs as another account, must be able to pass through it.
        create_folders(folder, 0o711 if os.geteuid() == 0 else 0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise ConfigurationError(f"database.data_dir is {folder}, which isn't a folder, or isn't below one") from None
    except OSError as error:
        raise ConfigurationError(
            f"database.data_dir is {folder}, where this account can't write: {error.strerror or error}"
        ) from error
