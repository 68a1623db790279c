"""A Knot DNS for tests: authoritative for their zones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.real_servers.bind import write_zones
from tests.real_servers.process import Daemon, free_port, wait_until
from tests.real_servers.unpacked import Unpacked


class Knot:
    """Like `bind.Named`, with the same zones."""

    def __init__(self, directory: Path, zones: Mapping[str, str], broken: tuple[str, ...] = ()) -> None:
        server = Unpacked("knot", directory, {"knot": 64105})
        self.port = free_port()
        config = directory / "knot.conf"
        stanzas = [
            f'  - domain: {zone}.\n    file: "{file}"\n    semantic-checks: soft\n'
            for zone, file in write_zones(directory, zones, broken).items()
        ]
        config.write_text(
            f"""
server:
    listen: 127.0.0.1@{self.port}
    rundir: "{directory}"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: "{directory}/database"
zone:
{"".join(stanzas)}
"""
        )
        log = directory / "knot.log"
        self._daemon = Daemon(server.command("knotd", "-c", config), log, ports=[self.port])
        try:
            # It listens before its zones are loaded, and answers SERVFAIL until then.
            wait_until(lambda: log.read_text().count("loaded, serial") == len(zones), "zones", log=log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
