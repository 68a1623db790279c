"""`mailsonde init` for mailboxes at providers that take no passwords: what it asks, writes and says next."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from monitor.commands import main
from monitor.config.load import load
from monitor.init.endpoint import Endpoint
from monitor.init.providers import EXCHANGE_ONLINE, GOOGLE, MAIL_PROVIDERS, Hosting, Provider
from monitor.runner import Result as ProbeResult
from probes.core.reasons import Reason
from probes.core.remedies import GENERAL
from probes.core.transcript import Transcript
from probes.core.verdict import Verdict
from tests.fakes.clock import InstantClock
from tests.real_servers.dovecot import TlsFiles

ADDRESS = ("--address", "canary@contoso.com")
Init = Callable[..., Result]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    """Run the command in an empty directory. DNS shows ``provider`` for every domain."""
    monkeypatch.chdir(tmp_path)
    module = import_module("monitor.commands.init")

    def run(*arguments: str, typed: str = "", provider: Provider | None = None) -> Result:
        found = None if provider is None else Hosting(provider, "MX record mx.test")
        monkeypatch.setattr(module, "_search", lambda *_: ([], found))
        return CliRunner().invoke(main, ["init", *ADDRESS, *arguments], input=typed, prog_name="mailsonde")

    return run


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def next_steps(done: Result) -> list[str]:
    assert done.exit_code == 0, done.output
    return [line.strip() for line in done.stdout.partition("Next:\n")[2].splitlines()]


@pytest.mark.parametrize("provider", MAIL_PROVIDERS, ids=lambda provider: provider.preset)
@pytest.mark.parametrize("how", [("--yes",), ()], ids=["no questions", "Enter to every question"])
def test_file_is_valid_before_it_is_filled_in(
    init: Init, tmp_path: Path, provider: Provider, how: tuple[str, ...]
) -> None:
    """Without any answer, the file is valid, says what to fill in, and needs no password."""
    done = init(*how, typed="\n" * 20, provider=provider)
    assert f"The mailbox seems to be at {provider.name} (MX record mx.test)." in done.stdout
    assert "passwords by IMAP" in done.stdout
    steps = next_steps(done)
    assert steps[-1] == "mailsonde doctor mailbox canary --config mailsonde.yaml"
    assert f"fill in client_id in oauth2.{provider.issuer}" in steps
    assert files(tmp_path) == ["mailsonde.yaml"]
    made = load(tmp_path / "mailsonde.yaml", secrets=False)
    assert {server.preset for server in made.servers.values()} == {provider.preset}
    text = (tmp_path / "mailsonde.yaml").read_text()
    assert "client_id: FILL-IN" in text
    settings = [line for line in text.splitlines() if re.match(r" +(- )?\w+: ", line)]
    assert [line for line in settings if not re.search(r"  # \S.*[^.]$", line)] == [], "no comment"
    assert "password" not in text.replace("in place of a password", "")


@pytest.mark.parametrize(
    ("listen", "told"),
    [("127.0.0.1:9725", ""), ("0.0.0.0:9725", "beyond this machine, and all who can connect")],
)
def test_whoever_opens_the_agent_to_others_is_told_how(
    init: Init, tmp_path: Path, listen: str, told: str
) -> None:
    """The file names web_config next to the address, and an address beyond this machine gives a warning."""
    done = init("--yes", "--listen", listen, provider=GOOGLE)
    assert done.exit_code == 0
    assert told in done.stderr
    assert ("agent.web_config" in done.stderr) is bool(told)
    lines = (tmp_path / "mailsonde.yaml").read_text().splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith(f"  listen: {listen}")]
    assert lines[at + 1].startswith("  # web_config: web.yml ")


def test_exchange_online_is_read_by_graph(init: Init, tmp_path: Path) -> None:
    """Graph comes first, because its rights can be limited to one mailbox; one server does both."""
    next_steps(init("--yes", "--client-id", "1-2-3", provider=EXCHANGE_ONLINE))
    data = yaml.safe_load((tmp_path / "mailsonde.yaml").read_text())
    assert data["servers"] == {
        "graph@graph.microsoft.com": {
            "protocol": "graph",
            "preset": "exchange-online",
            "oauth2": "microsoft",
        }
    }
    assert data["oauth2"]["microsoft"] == {
        "provider": "microsoft",
        "tenant": "contoso.com",
        "client_id": "1-2-3",
        "client_secret": {"env": "MAILSONDE_CLIENT_SECRET"},
    }
    assert [probe["kind"] for probe in data["probes"]] == ["roundtrip", "mx"]


@pytest.mark.parametrize(
    ("cloud", "authority", "resource"),
    [
        ("usgov", "https://login.microsoftonline.us", "https://graph.microsoft.us"),
        ("dod", "https://login.microsoftonline.us", "https://dod-graph.microsoft.us"),
        ("china", "https://login.partner.microsoftonline.cn", "https://microsoftgraph.chinacloudapi.cn"),
    ],
)
def test_other_clouds_of_microsoft(
    init: Init, tmp_path: Path, cloud: str, authority: str, resource: str
) -> None:
    """A tenant of another cloud gets tokens, their scope and its server from that cloud."""
    next_steps(init("--yes", "--cloud", cloud, "--tenant", "agency.example"))
    made = load(tmp_path / "mailsonde.yaml", secrets=False)
    issuer = made.oauth2["microsoft"]
    assert issuer.token_endpoint == f"{authority}/agency.example/oauth2/v2.0/token"
    assert issuer.scope("graph") == f"{resource}/.default"
    assert [f"https://{server.host}" for server in made.servers.values()] == [resource]


def test_named_servers_are_used(init: Init, tmp_path: Path) -> None:
    """A user who names the provider's mail servers gets these, with their own port."""
    servers = ("--smtp", "smtp.office365.com:25", "--mailbox", "pop3://outlook.office365.com")
    next_steps(init("--yes", *servers))
    made = load(tmp_path / "mailsonde.yaml", secrets=False)
    assert [(server.protocol, server.host, server.port, server.tls) for server in made.servers.values()] == [
        ("smtp", "smtp.office365.com", 25, "starttls"),
        ("pop3", "outlook.office365.com", 995, "implicit"),
    ]
    assert [probe.kind for probe in made.probes] == ["roundtrip", "smtp", "pop3", "mx"]
    assert made.mailboxes["canary"].oauth2 == "microsoft"


@pytest.mark.parametrize(
    ("arguments", "key", "reference", "step"),
    [
        (
            ("--client-secret-env", "APP"),
            "client_secret",
            {"env": "APP"},
            "export APP=…   # the client's secret, where the agent runs",
        ),
        (
            ("--client-secret-file", "/none/app"),
            "client_secret",
            {"file": "/none/app"},
            "put the client's secret into /none/app",
        ),
        (
            ("--certificate", "/none/a.pem"),
            "certificate",
            {"file": "/none/a.pem"},
            "put the private key and its certificate, in PEM, into /none/a.pem",
        ),
        (
            ("--service-account", "/none/k.json"),
            "service_account",
            {"file": "/none/k.json"},
            "put the service account's key into /none/k.json",
        ),
    ],
)
def test_credential_by_option(
    init: Init, tmp_path: Path, arguments: tuple[str, ...], key: str, reference: dict[str, str], step: str
) -> None:
    """Each credential is written as a reference, and what is still missing is said."""
    provider = GOOGLE if key == "service_account" else EXCHANGE_ONLINE
    steps = next_steps(init("--yes", *arguments, provider=provider))
    assert step in steps
    (entry,) = yaml.safe_load((tmp_path / "mailsonde.yaml").read_text())["oauth2"].values()
    assert entry[key] == reference
    load(tmp_path / "mailsonde.yaml", secrets=False)


def test_answers_are_written(init: Init, tmp_path: Path) -> None:
    """Tenant, id and the place of the certificate are as typed; nothing is left to fill in."""
    (tmp_path / "own.pem").write_text("")
    typed = "y\ncontoso.onmicrosoft.com\n1-2-3\ncertificate\nown.pem\ny\n"
    steps = next_steps(init(typed=typed, provider=EXCHANGE_ONLINE))
    assert steps == ["mailsonde doctor mailbox canary --config mailsonde.yaml"]
    assert yaml.safe_load((tmp_path / "mailsonde.yaml").read_text())["oauth2"]["microsoft"] == {
        "provider": "microsoft",
        "tenant": "contoso.onmicrosoft.com",
        "client_id": "1-2-3",
        "certificate": {"file": str(tmp_path / "own.pem")},
    }


def test_an_answer_may_begin_with_a_tilde(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell reads the answer to a question, so mailsonde itself finds the home directory."""
    monkeypatch.setenv("HOME", "/home/me")
    next_steps(init(typed="y\nservice-account\n~/key.json\ny\n", provider=GOOGLE))
    data = yaml.safe_load((tmp_path / "mailsonde.yaml").read_text())
    assert data["oauth2"]["google"]["service_account"] == {"file": "/home/me/key.json"}


def test_service_account_by_answers(init: Init, tmp_path: Path) -> None:
    """A service account is a choice of its own, because it opens every mailbox of the domain."""
    next_steps(init(typed="y\nservice-account\n\ny\n", provider=GOOGLE))
    entry = yaml.safe_load((tmp_path / "mailsonde.yaml").read_text())["oauth2"]["google"]
    assert entry == {"provider": "google", "service_account": {"file": str(tmp_path / "key.json")}}


@pytest.mark.parametrize("provider", [EXCHANGE_ONLINE, GOOGLE], ids=lambda provider: provider.preset)
def test_end_of_input_at_each_question(init: Init, tmp_path: Path, provider: Provider) -> None:
    """Wherever the input ends before the last answer, the command exits 1 and nothing is there."""
    questions = 0
    while (done := init(typed="\n" * questions, provider=provider)).exit_code == 1:
        assert "stopped; nothing was written" in done.stderr
        assert files(tmp_path) == []
        questions += 1
    assert next_steps(done)
    assert questions > 4


@pytest.mark.parametrize("pasted", ["Abc8Q~dEf.gHi-jKl_mNo", "two words", "1st", "Ä"])
@pytest.mark.parametrize("how", ["option", "answer"])
def test_pasted_secret_is_refused(init: Init, tmp_path: Path, pasted: str, how: str) -> None:
    """A text that cannot be a variable's name is refused, is not repeated, and is in no file."""
    if how == "option":
        done = init("--yes", "--client-secret-env", pasted, provider=EXCHANGE_ONLINE)
        assert done.exit_code == 2
        assert files(tmp_path) == []
    else:
        done = init(typed=f"y\n\n\nenv\n{pasted}\nGOOD\ny\n", provider=EXCHANGE_ONLINE)
        assert "export GOOD=" in next_steps(done)[1]
        assert pasted not in (tmp_path / "mailsonde.yaml").read_text()
    assert "do not enter the secret itself" in done.output
    # A terminal shows what is typed; the command adds no copy.
    assert done.output.count(pasted) == (how == "answer")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--certificate", "a", "--client-secret-file", "b"), "give only one of --client-secret-file and"),
        (("--service-account", "k", "--tenant", "contoso.com"), "--service-account is Google's"),
        (("--tenant", "contoso.com", "--password-file", "x"), "either a password or the options of OAuth2"),
        (("--client-id", "1-2-3"), "name it with --tenant or --service-account"),
        (("--tenant", "contoso.com", "--smtp", "smtp.gmail.com"), "are not those of Exchange Online"),
        (("--tenant", "not a tenant"), "Invalid value for '--tenant'"),
    ],
)
def test_options_that_contradict_each_other(
    init: Init, tmp_path: Path, arguments: tuple[str, ...], why: str
) -> None:
    """Options that do not fit together are refused before anything is asked or written."""
    if "--password-file" in arguments:
        (tmp_path / "x").write_text("s3cret\n")
    before = files(tmp_path)
    done = init("--yes", *arguments)
    assert done.exit_code == 2
    assert why in done.stderr
    assert files(tmp_path) == before


def test_provider_that_no_record_shows(init: Init, tmp_path: Path) -> None:
    """Behind a filter without a trace in DNS, --tenant or --service-account names the provider."""
    next_steps(init("--yes", "--tenant", "contoso.onmicrosoft.com"))
    assert "graph" in (tmp_path / "mailsonde.yaml").read_text()
    next_steps(init("--yes", "--service-account", "key.json", "--out", "other.yaml"))
    assert "gmail" in (tmp_path / "other.yaml").read_text()


def test_ca_of_an_inspecting_proxy(init: Init, tmp_path: Path, server_tls: TlsFiles) -> None:
    """--tls-ca is written for the servers and for the token endpoint."""
    next_steps(init("--yes", "--tls-ca", str(server_tls.authority), provider=EXCHANGE_ONLINE))
    data = yaml.safe_load((tmp_path / "mailsonde.yaml").read_text())
    entries = (*data["oauth2"].values(), *data["servers"].values())
    assert {entry["tls_ca"] for entry in entries} == {str(server_tls.authority)}


def test_doctor_names_the_missing_variable(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that init names says which variable to set, and with it goes on to the token."""
    (*_, command) = next_steps(init("--yes", provider=EXCHANGE_ONLINE))
    monkeypatch.delenv("MAILSONDE_CLIENT_SECRET", raising=False)
    done = CliRunner().invoke(main, command.split()[1:])
    assert done.exit_code == 2
    assert "client_secret: environment variable MAILSONDE_CLIENT_SECRET is not set" in done.stderr
    # No traffic: the token endpoint's name is not resolved, because the proxy refuses the connection.
    monkeypatch.setenv("MAILSONDE_CLIENT_SECRET", "s3cret")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    path = tmp_path / "mailsonde.yaml"
    path.write_text(re.sub("ledger: .*", f"ledger: sqlite://{tmp_path}/l.db", path.read_text()))
    done = CliRunner().invoke(main, command.split()[1:])
    assert re.match(r"unknown  token +token_unavailable: ", done.stdout), done.output
    assert "s3cret" not in done.output


def _own_servers(monkeypatch: pytest.MonkeyPatch, reason: Reason, kind: str = "smtp") -> None:
    """Let the user's own servers be reachable, and one of them refuse the login."""
    module = import_module("monitor.commands.init")

    async def all_usable(endpoints: Sequence[Endpoint], *_: object) -> list[tuple[Endpoint, str]]:
        return [(endpoint, "") for endpoint in endpoints]

    async def refused(
        _: str, __: object, clock: object, told: Callable[[ProbeResult], None]
    ) -> list[ProbeResult]:
        result = ProbeResult(
            run="0" * 32,
            probe="submission",
            kind=kind,
            target="out",
            location="here",
            verdict=Verdict(reason, "535 5.7.139 no"),
            started_at=1_700_000_000.0,
            duration_seconds=0.25,
            transcript=Transcript(InstantClock()),
        )
        told(result)
        return [result]

    monkeypatch.setattr(module, "reach", all_usable)
    monkeypatch.setattr(module, "try_out", refused)


def test_login_that_is_turned_off_has_its_remedy(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If any server says that this kind of login is off, init says what to do, and asks no more."""
    _own_servers(monkeypatch, Reason.AUTH_DISABLED)
    servers = ("--smtp", "mail.example.com:587", "--mailbox", "imap.example.com")
    done = init(*servers, typed="s3cret\n" * 3)
    assert done.exit_code == 2
    assert f"auth_disabled: 535 5.7.139 no\n  remedy: {GENERAL[Reason.AUTH_DISABLED]}\n" in done.stdout
    assert done.stdout.count("535 5.7.139") == 1
    assert files(tmp_path) == []


def test_password_that_was_given_is_tried(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A given password, such as Google's app password, is tried as everywhere, with a warning first."""
    _own_servers(monkeypatch, Reason.AUTH_FAILED)
    (tmp_path / "app").write_text("abcd efgh\n")
    servers = ("--smtp", "smtp.gmail.com", "--mailbox", "imap.gmail.com")
    done = init("--yes", *servers, "--password-file", "app")
    assert done.exit_code == 2
    assert "It accepts no account passwords" in done.stdout
    assert "Your password is tried nevertheless" in done.stdout
    assert "the login does not work" in done.stderr
    assert "oauth2" not in done.output.lower().replace("init sets up oauth2", "")


def test_offer_is_declined(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who declines is asked for a password, as everywhere."""
    _own_servers(monkeypatch, Reason.AUTH_DISABLED)
    servers = ("--smtp", "smtp.gmail.com", "--mailbox", "imap.gmail.com")
    done = init(*servers, typed="n\ns3cret\n")
    assert "Set up OAuth2? [Y/n]: n\n" in done.stdout
    assert "auth_disabled" in done.stdout


def test_own_servers_are_used_for_mail_that_a_provider_filters(
    init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider in the MX record changes nothing for a user who names servers of their own."""
    _own_servers(monkeypatch, Reason.AUTH_DISABLED)
    done = init("--smtp", "mail.example.com", typed="y\ns3cret\n", provider=EXCHANGE_ONLINE)
    assert "The servers that you named are tried nevertheless." in done.stdout
    assert "no IMAP or POP3 server was found" in done.stderr
