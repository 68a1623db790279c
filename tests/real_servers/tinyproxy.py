"""An HTTP proxy for tests: Tinyproxy."""

from __future__ import annotations

from pathlib import Path

from tests.real_servers.process import Daemon, free_port, require


class Tinyproxy:
    """A proxy that connects to port ``to`` only, and asks for a ``password`` if there is one."""

    def __init__(self, directory: Path, to: int, password: str = "") -> None:
        program = require("tinyproxy", "tinyproxy-bin")
        port = free_port()
        config = directory / f"tinyproxy-{port}.conf"
        login = f"BasicAuth mailsonde {password}\n" if password else ""
        config.write_text(
            f"Port {port}\nListen 127.0.0.1\nTimeout 30\nMaxClients 20\nLogLevel Info\n"
            f"ConnectPort {to}\n{login}"
        )
        self.url = f"http://{f'mailsonde:{password}@' if password else ''}127.0.0.1:{port}"
        self._daemon = Daemon([program, "-d", "-c", config], config.with_suffix(".log"), ports=[port])

    def requests(self) -> int:
        """Return how many requests it has got."""
        return self._daemon.log.read_text().count("Request (file descriptor")

    def stop(self) -> None:
        """End the proxy."""
        self._daemon.stop()
