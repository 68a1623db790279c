"""The steps from a mailbox's configuration to a message there and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from pydantic import SecretStr

from monitor.runner import Result
from monitor.runtime import Runtime
from probes.core.credentials import Resource, credentials_of, mailbox_credentials
from probes.core.faults import ProbeFault
from probes.core.probe import Probe
from probes.core.reasons import Reason
from probes.core.secret import BearerToken
from probes.core.verdict import TICKET, TOKEN, PhaseTimer
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.message_probe import MessageProbe
from probes.oauth2.refusals import claims_of, login_remedy, remarks
from probes.oauth2.settings import RESOURCES, MicrosoftOAuth2
from probes.protocols.imap_session import ImapSession
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.smtp_session import smtp_session

_STEP_OF_PHASE: Mapping[str, str] = MappingProxyType(
    {
        TOKEN: "token",
        "resolve": "dns",
        "connect": "tcp",
        "tls": "tls",
        "starttls": "tls",
        TICKET: "login",
        "login": "login",
        "select": "folder",
        "stat": "folder",
        "first_byte": "folder",
        "body": "folder",
    }
)
"""The step that each phase belongs to; all others are the greeting's."""

_PERMISSIONS = MappingProxyType(
    {
        "imap": frozenset({"IMAP.AccessAsApp", "IMAP.AccessAsUser.All"}),
        "pop3": frozenset({"POP.AccessAsApp", "POP.AccessAsUser.All"}),
        "graph": frozenset(),  # RBAC for Applications grants them, and no token shows that
    }
)
"""Microsoft's permissions, of which a token needs one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its name, how it ended (ok, warning, failed, unknown or skipped), and what to do."""

    name: str
    outcome: str
    detail: str
    reason: str = str(Reason.NONE)
    remedy: str = ""


class MailboxDoctor:
    """Examines one mailbox of a runtime's configuration."""

    def __init__(self, name: str, runtime: Runtime) -> None:
        site = runtime.assembly.configuration.site
        self._name = name
        self._runtime = runtime
        self._mailbox = site.mailboxes[name]
        self._server = site.servers[self._mailbox.server]
        resource: Resource = "graph" if self._server.protocol == "graph" else "mail"
        self._credentials = mailbox_credentials(self._mailbox, runtime.assembly.tokens, resource)
        self._phases = PhaseTimer(runtime.clock)
        self._login_remedy = ""
        """What to do if the login with the token at hand is refused."""

    async def steps(self) -> AsyncIterator[Step]:
        """Yield each step when it has ended, up to the first that fails."""
        try:
            secret = None
            if self._mailbox.oauth2 is not None:
                secret = await self._secret()
                for step in self._token_steps(secret):
                    yield step
                for step in await self._tenant_steps():
                    yield step
            if self._server.protocol == "graph":
                for step in await self._graph_steps():
                    yield step
                async for step in self._there_and_back():
                    yield step
                return
            session = await self._connect()
            for step in self._connected_steps(session):
                yield step
            try:
                secret = secret or await self._secret()
                await session.log_in(self._mailbox.username, secret)
                yield Step("login", "ok", f"as {self._mailbox.username}")
                yield Step("folder", "ok", await self._opened(session))
            finally:
                session.abort()
        except ProbeFault as fault:
            yield self._failed(fault)
            return
        async for step in self._there_and_back():
            yield step

    async def _secret(self) -> SecretStr:
        return await self._credentials.secret(self._phases)

    async def _graph_steps(self) -> list[Step]:
        """Ask for the newest message of the folder, which takes all steps at once."""
        from probes.delivery.mailboxes.graph import GraphMailbox  # half a second, which only Graph needs

        runtime, site = self._runtime, self._runtime.assembly.configuration.site
        mailbox = GraphMailbox(
            self._mailbox,
            site.servers[self._mailbox.server],
            runtime.clock,
            LoginBudget(self._server.logins_per_minute, runtime.clock),
            runtime.assembly.retention,
            runtime.assembly.tokens,
        )
        try:
            async with mailbox.poll(self._phases):
                folder = Step("folder", "ok", self._mailbox.folder)
        finally:
            await mailbox.close()
        connect = self._phases.seconds.get("connect", 0.0) * 1000
        return [
            Step("dns", "ok", self._server.host),
            Step("tcp", "ok", f"port {self._server.port} in {connect:.0f} ms"),
            Step("tls", "ok", "not used: tls is none" if self._server.tls == "none" else "encrypted"),
            folder,
        ]

    def _token_steps(self, secret: SecretStr) -> list[Step]:
        name = str(self._mailbox.oauth2)
        settings = self._runtime.assembly.configuration.oauth2[name]
        steps = [Step("token", "ok", f"issued by oauth2 {name}")]
        claims = claims_of(secret.get_secret_value()) if isinstance(secret, BearerToken) else {}
        if isinstance(settings, MicrosoftOAuth2):
            resource, wanted = (
                RESOURCES[self._credentials.resource][settings.cloud],
                _PERMISSIONS[self._server.protocol],
            )
            found = remarks(claims, resource, wanted, self._runtime.clock.time())
            steps += [Step("token", "warning", detail, remedy=remedy) for detail, remedy in found]
            self._login_remedy = login_remedy(claims)
        return steps

    async def _tenant_steps(self) -> list[Step]:
        """Ask for message traces and service health, as far as the entry of ``oauth2`` says so.

        A refusal is a warning: mail goes on without them.
        """
        tracer = self._runtime.assembly.context.tracers.get(str(self._mailbox.oauth2))
        refusals = await tracer.refusals() if tracer is not None else {}
        return [
            Step(name, "ok", "the tenant answers")
            if fault is None
            else Step(name, "warning", f"cannot be read: {fault.detail}", str(fault.reason), fault.remedy)
            for name, fault in refusals.items()
        ]

    async def _connect(self) -> ImapSession | Pop3Session:
        opened = ImapSession if self._server.protocol == "imap" else Pop3Session
        return await opened.connect(self._server, self._phases, self._runtime.clock)

    def _connected_steps(self, session: ImapSession | Pop3Session) -> list[Step]:
        server, seconds = self._server, self._phases.seconds
        told = {
            "dns": server.host,
            "tcp": f"port {server.port} in {seconds.get('connect', 0.0) * 1000:.0f} ms",
        }
        if (expiry := session.certificate_expiry) is not None:
            told["tls"] = f"certificate valid until {datetime.fromtimestamp(expiry.not_after, UTC):%Y-%m-%d}"
        elif server.tls == "none":
            told["tls"] = "not used: tls is none"
        return [Step(name, "ok", detail) for name, detail in told.items()]

    async def _opened(self, session: ImapSession | Pop3Session) -> str:
        if isinstance(session, Pop3Session):
            count, _ = await session.stat()
            return f"{count} messages"
        await session.select(self._mailbox.folder, read_only=True)
        return f"{self._mailbox.folder}: {session.exists} messages"

    def _failed(self, fault: ProbeFault) -> Step:
        phase = self._phases.current or ""
        self._phases.transcript.redaction.fault(fault)
        name = _STEP_OF_PHASE.get(phase, "greeting")
        outcome, remedy = str(fault.reason.outcome), fault.remedy
        if fault.reason is Reason.AUTH_FAILED:
            remedy = self._login_remedy or remedy
        return Step(name, outcome, fault.detail, str(fault.reason), remedy)

    async def _there_and_back(self) -> AsyncIterator[Step]:
        """Log in where the first round trip to this mailbox sends from, if there is one, and run it."""
        probe = self._round_trip()
        if probe is None:
            yield Step(
                "message",
                "skipped",
                "no probe of kind roundtrip sends to this mailbox",
                remedy="Add one, and run the doctor again.",
            )
            return
        if (submission := await self._submission(probe)) is not None:
            yield submission
            if submission.outcome != "ok":
                return
        results: list[Result] = []
        await self._runtime.run(probe, results.append)
        for result in results:
            verdict = result.verdict
            detail = f"probe {result.probe} by {result.target}"
            if verdict.detail:
                detail += f": {verdict.detail}"
            yield Step("message", verdict.reason.word, detail, str(verdict.reason), verdict.remedy)

    async def _submission(self, probe: Probe) -> Step | None:
        """Log in by SMTP as the round trip does; ``None`` if it needs no login there."""
        name = getattr(probe.settings, "send_via", "")
        assembly = self._runtime.assembly
        server, tokens = assembly.configuration.site.servers.get(name), assembly.tokens
        if server is None or server.protocol != "smtp" or credentials_of(server, tokens) is None:
            return None
        phases = PhaseTimer(self._runtime.clock)
        try:
            async with smtp_session(server, phases, self._runtime.clock, tokens=tokens) as session:
                await session.quit()
        except ProbeFault as fault:
            phases.transcript.redaction.fault(fault)
            detail = f"server {name}, in phase {phases.current or 'connect'}: {fault.detail}"
            return Step("submission", str(fault.reason.outcome), detail, str(fault.reason), fault.remedy)
        return Step("submission", "ok", f"server {name} as {server.username}")

    def _round_trip(self) -> Probe | None:
        for probe in self._runtime.assembly.probes.values():
            if isinstance(probe, MessageProbe) and probe.mailbox == self._name:
                return probe
        return None
