"""Takes the pictures of the live page, from an agent that watches the sandbox server for a while.

``python docs/screenshot.py [SECONDS]``; needs Chromium and the packages for developers.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

from monitor.agent import running_agent
from monitor.config.models import Configuration
from monitor.demo.demo import demo_configuration
from monitor.demo.sandbox_process import started_sandbox

HERE = Path(__file__).parent
PICTURES = (("/", "live-page.png", 470), ("/probes/sandbox-roundtrip", "live-probe.png", 780))
"""Addresses, files, and heights in pixels."""

CHROMIUM = "/usr/bin/chromium"


def _with_trouble(configuration: Configuration) -> Configuration:
    """Return the demo's configuration with an additional server that is down."""
    down = Configuration.model_validate(
        {
            "servers": {"old-relay": {"protocol": "smtp", "host": "127.0.0.1", "port": 1, "tls": "none"}},
            "probes": [{"name": "old-relay", "kind": "smtp", "interval": "5s", "server": "old-relay"}],
        }
    )
    return Configuration(
        agent=configuration.agent,
        servers={**configuration.servers, **down.servers},
        mailboxes=configuration.mailboxes,
        probes=(*configuration.probes, *down.probes),
    )


async def main(seconds: float) -> None:
    """Let the agent run for ``seconds``, and take the pictures."""
    with tempfile.TemporaryDirectory() as directory:
        async with started_sandbox(Path(directory), seed=3) as sandbox:
            configuration = _with_trouble(demo_configuration(sandbox, Path(directory), "2s"))
            async with running_agent(configuration) as agent, async_playwright() as playwright:
                await asyncio.sleep(seconds)
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                for path, name, height in PICTURES:
                    page = await browser.new_page(viewport={"width": 1200, "height": height})
                    await page.goto(agent.address + path)
                    await page.get_by_text("live", exact=True).wait_for()
                    await page.screenshot(path=HERE / name)
                await browser.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 90.0))
