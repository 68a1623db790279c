"""``python -m tests.crash.forker``: starts agents with all imports done, so that kills can be frequent.

The imports take seconds of processor time, and nothing of interest can be killed meanwhile. Each line of
standard input is answered by one line: ``start CONFIG LOG SOCKET`` by the process id, ``wait PID`` by the
exit status (negative: the signal). At the end of the input, agents that still run are killed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib import import_module

_IMPORTS = (
    "monitor.agent",
    "monitor.ledger.file_locks",
    "monitor.ledger.sqlite",
    "sqlalchemy.dialects.sqlite",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.h11_impl",
    "uvloop",
)
"""What `mailsonde run` imports."""


def _serve() -> None:
    running: set[int] = set()
    for line in sys.stdin:
        match line.split():
            case ["start", config, log, socket]:
                pid = os.fork() or _become_agent(config, log, socket)
                running.add(pid)
                print(pid, flush=True)
            case ["wait", pid]:
                running.discard(int(pid))
                print(os.waitstatus_to_exitcode(os.waitpid(int(pid), 0)[1]), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _become_agent(config: str, log: str, socket: str) -> int:
    """Be ``mailsonde run``; never returns."""
    from monitor.commands import main

    os.environ["NOTIFY_SOCKET"] = socket
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    # Tests count the runs of each outcome, which are logged only for debugging.
    logging.getLogger("mailsonde.agent").setLevel(logging.DEBUG)
    status = 1
    try:
        main(["run", "--config", config, "--log-format", "json"], standalone_mode=False)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(status)


if __name__ == "__main__":
    for name in _IMPORTS:
        import_module(name)
    _serve()
