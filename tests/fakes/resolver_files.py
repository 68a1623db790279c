"""Files that configure name resolution, written by tests."""

from __future__ import annotations

from pathlib import Path

from probes.protocols.name_resolution import NameResolution
from probes.protocols.resolver_files import ResolverFiles


def resolver_files(
    folder: Path, *, hosts: str = "", resolv_conf: str = "", nsswitch: str = ""
) -> ResolverFiles:
    """Write the files into ``folder``; by default, a name server on 127.0.0.1 resolves all names."""
    files = ResolverFiles(folder / "hosts", folder / "resolv.conf", folder / "nsswitch.conf")
    files.hosts_path.write_text(hosts)
    files.resolv_conf_path.write_text(resolv_conf)
    files.nsswitch_path.write_text(nsswitch)
    return files


def resolution(folder: Path, *, port: int = 53, **contents: str) -> NameResolution:
    """Return a resolver with such files; name servers listen on ``port``."""
    return NameResolution(resolver_files(folder, **contents), port)
