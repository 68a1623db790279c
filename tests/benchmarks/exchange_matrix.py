"""One run of an ``exchange`` probe: 9 virtual directories of 20 servers, which run in another process."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import get_args

import trustme

from monitor.runner import Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.settings import Site
from probes.exchange import Directory, Exchange, ExchangeSettings
from tests.fakes.exchange import HANG, HOST, exchange_site

NODES = 20
RUNS = 7
DEADLINE = 30.0


def _serve(pipe: Connection, authority: Path, hanging: int) -> None:
    """Serve the site until the other end asks for the number of connections and requests."""

    async def serve() -> None:
        made = trustme.CA()
        made.cert_pem.write_to_path(str(authority))
        async with exchange_site(made, NODES) as site:
            for server in list(site.servers.values())[:hanging]:
                server.faults["ews"] = HANG
            addresses = {server.fqdn: server.address for server in site.servers.values()}
            pipe.send((site.port, site.smtp_port, addresses))
            while await asyncio.to_thread(pipe.recv):
                pipe.send((site.connections, site.requests))

    asyncio.run(serve())


async def _measure(pipe: Connection, authority: Path) -> dict[str, object]:
    port, smtp_port, addresses = pipe.recv()
    settings = ExchangeSettings.model_validate(
        {
            "name": "exchange",
            "kind": "exchange",
            "host": HOST,
            "port": port,
            "smtp_port": smtp_port,
            "nodes": {
                f"ex{n}": {"address": address, "fqdn": fqdn}
                for n, (fqdn, address) in enumerate(addresses.items(), 1)
            },
            "directories": list(get_args(Directory)),
            "auth_certificate": False,
            "deadline": f"{DEADLINE:g}s",
            "tls_ca": str(authority),
        }
    )
    probe = Exchange(settings, Context(SystemClock(), Site("here", {}, {})))
    runner = Runner(SystemClock(), "here")
    seconds, processor, reasons = [], [], Counter[str]()
    for number in range(RUNS + 1):
        gc.collect()
        wall, used = time.perf_counter(), time.process_time()
        results = await asyncio.gather(*(runner.run(one) for one in (probe, *probe.siblings)))
        if number:  # the first one loads modules
            seconds.append(time.perf_counter() - wall)
            processor.append(time.process_time() - used)
            reasons.update(str(result.verdict.reason) for result in results)
        if number and seconds[-1] > DEADLINE / 10:
            break  # it waits for a server without an answer
    pipe.send(True)
    connections, requests = await asyncio.to_thread(pipe.recv)
    runs = len(seconds) + 1
    return {
        "targets": len(results),
        "wall time of a run, s": round(statistics.median(seconds), 2),
        "processor time of a request, ms": round(1000 * statistics.median(processor) / (requests / runs), 2),
        "requests a run": requests / runs,
        "connections a run": connections / runs,
        "results": dict(reasons),
    }


def main() -> None:
    """Print the figures with healthy servers, and with one directory of one server that hangs."""
    for told, hanging in (("all healthy", 0), ("EWS of one server hangs", 1)):
        with tempfile.TemporaryDirectory() as directory:
            ours, theirs = multiprocessing.Pipe()
            authority = Path(directory) / "ca.pem"
            server = multiprocessing.get_context("fork").Process(
                target=_serve, args=(theirs, authority, hanging), daemon=True
            )
            server.start()
            try:
                figures = asyncio.run(_measure(ours, authority))
            finally:
                server.terminate()
                server.join()
        print(f"{len(get_args(Directory))} directories of {NODES} Exchange servers, {told}:")
        for name, value in figures.items():
            print(f"  {name:32} {value}")
