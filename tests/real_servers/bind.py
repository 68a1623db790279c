"""A BIND for tests: authoritative for their zones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.real_servers.process import Daemon, free_port, require, wait_until

_HEAD = """\
$TTL 300
@ IN SOA ns.{zone}. hostmaster.{zone}. 1 3600 900 604800 300
@ IN NS ns.{zone}.
ns IN A 127.0.0.1
"""


def write_zones(directory: Path, zones: Mapping[str, str], broken: tuple[str, ...]) -> dict[str, Path]:
    """Write a file for each zone, with SOA and NS added, and for each broken one; return them by zone."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {zone: _HEAD.format(zone=zone) + text for zone, text in zones.items()}
    files = {}
    for zone, text in {**texts, **dict.fromkeys(broken, "this is no zone\n")}.items():
        files[zone] = directory / f"{zone}.zone"
        files[zone].write_text(text)
    return files


class Named:
    """Answers on 127.0.0.1, ``port``, over UDP and TCP; no recursion.

    ``zones`` are records by zone; SOA and NS are added. Zones in ``broken`` cannot be loaded, so queries for
    them get SERVFAIL.
    """

    def __init__(self, directory: Path, zones: Mapping[str, str], broken: tuple[str, ...] = ()) -> None:
        program = require("named", "bind9")
        files = write_zones(directory, zones, broken)
        self.port = free_port()
        stanzas = [
            f'zone "{zone}" {{ type primary; file "{file}"; check-names ignore; check-mx ignore; }};'
            for zone, file in files.items()
        ]
        config = directory / "named.conf"
        config.write_text(
            f"""
options {{
  directory "{directory}";
  pid-file none;
  session-keyfile "{directory}/session.key";
  listen-on port {self.port} {{ 127.0.0.1; }};
  listen-on-v6 {{ none; }};
  recursion no;
  dnssec-validation no;
  minimal-responses yes;
}};
controls {{ }};
{chr(10).join(stanzas)}
"""
        )
        log = directory / "named.log"
        self._daemon = Daemon([program, "-g", "-c", config], log, ports=[self.port])
        # It listens before its zones are loaded, and answers SERVFAIL until then.
        try:
            wait_until(lambda: "running\n" in log.read_text(), "BIND has loaded its zones", log=log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server."""
        self._daemon.stop()
