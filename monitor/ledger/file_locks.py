"""File locks that show which processes use an SQLite ledger. The kernel releases them when a process ends.

Next to ``ledger.db`` is the directory ``ledger.db.locks``. Each process that has the ledger open holds an
exclusive ``flock`` on its file ``instance-NAME`` there, and the agent also holds one on ``agent``. If a lock
can be taken, its process is gone. Unlike process ids, locks are not misleading after a reboot. The directory
itself is locked while its files are checked or changed. Only the owner can open the files, whatever the
umask, because anyone who can open a file can lock it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from monitor.ledger.database import AgentProcess, Locks
from probes.delivery.message_life import LedgerError

_PREFIX = "instance-"
_AGENT = "agent"
_TEXT = "agent-says"


class FileLocks(Locks):
    """Locks of this process on the ledger file ``path``, held under the name ``instance``.

    A name has 1 to 64 letters, digits, dots, dashes and underscores. Raises LedgerError if another process
    has this name or the directory cannot be made.
    """

    def __init__(self, path: Path, instance: str) -> None:
        if not re.fullmatch("[A-Za-z0-9._-]{1,64}", instance):
            raise ValueError(f"{instance!r} cannot name an instance")
        self._instance = instance
        self._ledger = path
        self._directory = _directory_of(path)
        self._held = ExitStack()
        self._instance_file = self._directory / f"{_PREFIX}{instance}"
        with self._translated():
            self._directory.mkdir(mode=0o700, exist_ok=True)
        with self._directory_locked():
            if self._hold(self._instance_file) is None:
                raise LedgerError(f"ledger {path}: another process runs as instance {instance}")

    @property
    def instance(self) -> str:
        """The name of this process, unique among the running ones."""
        return self._instance

    def lock_for_agent(self) -> None:
        """Reserve the ledger for this agent until `release`; raises LedgerError if another agent has it."""
        with self._directory_locked():
            file = self._hold(self._directory / _AGENT)
            if file is None:
                pid = (self._directory / _AGENT).read_text().partition("\n")[0]
                raise LedgerError(
                    f"ledger {self._ledger}: another agent (process {pid}) uses it; "
                    "stop that one, or give each agent a ledger of its own"
                )
            file.truncate(0)
            file.write(f"{os.getpid()}\n{_process_ids()}\n")
            file.flush()

    def leave(self, text: str) -> None:
        """Leave a text for other processes, which `agent_process` returns to them."""
        path = self._directory / _TEXT
        with self._translated():
            new = path.with_name(f"{_TEXT}.new")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
            new.replace(path)

    def living(self) -> frozenset[str]:
        """Return the instances of all running processes, including this one; remove the files of others."""
        living = set()
        with self._directory_locked():
            for path in self._directory.glob(f"{_PREFIX}*"):
                with _opened(path) as file:
                    if _locked(file):
                        path.unlink()
                    else:
                        living.add(path.name.removeprefix(_PREFIX))
        return frozenset(living)

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Keep other processes from setting up the same ledger at the same time."""
        with ExitStack() as stack:
            with self._translated():
                file = stack.enter_context(_opened(self._directory / "setup"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def release(self) -> None:
        """Release the locks, even if the directory is gone."""
        with suppress(LedgerError), self._directory_locked():
            self._instance_file.unlink(missing_ok=True)
        self._held.close()

    def _hold(self, path: Path) -> TextIOWrapper | None:
        """Return the locked file, which `release` closes, or ``None`` if another process has locked it."""
        file = _opened(path)
        if not _locked(file):
            file.close()
            return None
        return self._held.enter_context(file)

    @contextmanager
    def _directory_locked(self) -> Iterator[None]:
        with self._translated(), _locked_directory(self._directory):
            yield

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LedgerError(
                f"ledger {self._ledger}: {self._directory}: {error.strerror}; "
                f"it must be writable for user {os.geteuid()}"
            ) from error


def agent_process(ledger: Path) -> AgentProcess | None:
    """Return the agent that has the ledger file ``ledger``; ``None`` if there is none.

    Raises LedgerError if the locks cannot be accessed.
    """
    directory = _directory_of(ledger)
    try:
        with _locked_directory(directory), _opened(directory / _AGENT) as file:
            if _locked(file):
                return None
            pid, of, *_ = [*(directory / _AGENT).read_text().splitlines(), _process_ids()]
        if of != _process_ids():
            raise ValueError(f"process {pid} of another container has it")  # noqa: TRY301 # told like others
        text = directory / _TEXT
        return AgentProcess(int(pid), text.read_text() if text.exists() else "")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise LedgerError(f"ledger {ledger}: {directory}: {why}; run it as the user of the agent") from error


def _process_ids() -> str:
    """Return a name for the process ids that this process sees: those of a container are its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "pid:[]"


def user_of(ledger: Path) -> os.stat_result:
    """Return the state of the locks of ``ledger``, or of its directory if it has none yet.

    Raises LedgerError if there is no such directory.
    """
    try:
        locks = _directory_of(ledger)
        return (locks if locks.exists() else ledger.parent).stat()
    except OSError as error:
        raise LedgerError(
            f"the ledger's directory {ledger.parent} cannot be used: {error.strerror}"
        ) from error


def _directory_of(ledger: Path) -> Path:
    return ledger.with_name(ledger.name + ".locks")


@contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> TextIOWrapper:
    """Open a file for locking. It gets mode 0600, even if an older mailsonde made it with another."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a")
    if os.fstat(file.fileno()).st_mode & 0o077:
        os.fchmod(file.fileno(), 0o600)
    return file


def _locked(file: TextIOWrapper) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
