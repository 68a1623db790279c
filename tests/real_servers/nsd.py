"""An NSD for tests: authoritative for their zones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.real_servers.bind import write_zones
from tests.real_servers.process import Daemon, free_port
from tests.real_servers.unpacked import Unpacked


class Nsd:
    """Like `bind.Named`, with the same zones."""

    def __init__(self, directory: Path, zones: Mapping[str, str], broken: tuple[str, ...] = ()) -> None:
        server = Unpacked("nsd", directory, {"nsd": 64106})
        self.port = free_port()
        config = directory / "nsd.conf"
        stanzas = [
            f'zone:\n  name: "{zone}"\n  zonefile: "{file}"\n'
            for zone, file in write_zones(directory, zones, broken).items()
        ]
        config.write_text(
            f"""
server:
  ip-address: 127.0.0.1@{self.port}
  username: ""
  database: ""
  zonesdir: "{directory}"
  pidfile: ""
  xfrdfile: "{directory}/xfrd.state"
  zonelistfile: "{directory}/zone.list"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
{"".join(stanzas)}
"""
        )
        command = server.command("nsd", "-d", "-c", config)
        self._daemon = Daemon(command, directory / "nsd.log", ports=[self.port])

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
