"""The web configuration file: what is accepted, and the complete message of each mistake."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from monitor.config.load import ConfigurationError, load
from monitor.config.web_config import WebConfig, read_web_config
from tests.fakes.certificates import certify

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
VERIFIED = "client_auth_type: RequireAndVerifyClientCert"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with a certificate, keys of several kinds, and a CA."""
    ca = certify("ca")
    leaf = certify("agent", ca, is_ca=False)
    weak = certify("weak", is_ca=False, key=rsa.generate_private_key(65537, 1024))  # noqa: S505 # too weak
    encrypted = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for name, content in {
        "server.crt": leaf.pem,
        "ca.crt": ca.pem,
        "weak.crt": weak.pem,
        "server.key": leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "other.key": ca.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "weak.key": weak.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "encrypted.key": encrypted,
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def read(folder: Path, text: str) -> WebConfig | str:
    """Return the web configuration ``text``, or its mistakes without the folder."""
    path = folder / "web.yml"
    path.write_text(text)
    found = read_web_config(path)
    if isinstance(found, WebConfig):
        return found
    return "\n".join(map(str, found)).replace(f"{folder}/", "")


def tls(*lines: str) -> str:
    """Return a file with TLS and further ``lines``, the first of which is line 4."""
    served = ["tls_server_config:", "  cert_file: server.crt", "  key_file: server.key"]
    return "\n".join([*served, *(f"  {line}" for line in lines)]) + "\n"


def test_a_ca_with_comments_in_any_script(files: Path) -> None:
    """What stands around the certificates of a CA file may be in any script or encoding."""
    bare = (files / "ca.crt").read_bytes()
    (files / "ca.crt").write_bytes("# Zürich 東京\n".encode() + b"# Z\xfcrich\n" + bare)
    config = read(files, tls("client_ca_file: ca.crt", VERIFIED))
    assert isinstance(config, WebConfig)
    assert config.tls_server_config is not None
    assert len(config.tls_server_config.context.get_ca_certs()) == 1


def test_everything_that_is_offered(files: Path) -> None:
    """A file with all settings is accepted, and its TLS context has them."""
    text = tls(
        "client_ca_file: ca.crt",
        VERIFIED,
        "client_allowed_sans: [prometheus.example.com, '2001:DB8::1']",
        "min_version: TLS12",
        "max_version: TLS13",
        "cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]",
        "prefer_server_cipher_suites: false",
        "curve_preferences: [X25519]",
    )
    text += f"""\
http_server_config:
  http2: false
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Frame-Options: deny
basic_auth_users:
  alice: {HASH}
rate_limit: {{interval: 500ms, burst: 20}}
"""
    found = read(files, text)
    assert isinstance(found, WebConfig), found
    assert found.tls_server_config is not None
    context = found.tls_server_config.context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert (context.minimum_version, context.maximum_version) == (
        ssl.TLSVersion.TLSv1_2,
        ssl.TLSVersion.TLSv1_3,
    )
    older = [each["name"] for each in context.get_ciphers() if each["protocol"] == "TLSv1.2"]
    assert older == ["ECDHE-ECDSA-AES128-GCM-SHA256"]
    assert not context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert found.tls_server_config.client_allowed_sans == ("prometheus.example.com", "2001:db8::1")
    assert found.rate_limit is not None
    assert found.rate_limit.interval == 0.5
    assert found.asks_for_credentials


def test_certificate_and_key_may_stand_in_the_file(files: Path) -> None:
    """PEM texts in place of files are accepted, and the key is not shown."""
    text = "tls_server_config:\n"
    for key, name in (("cert", "server.crt"), ("key", "server.key")):
        text += f"  {key}: |\n" + "".join(f"    {line}\n" for line in (files / name).read_text().splitlines())
    found = read(files, text)
    assert isinstance(found, WebConfig), found
    assert found.tls_server_config is not None
    assert found.tls_server_config.context.cert_store_stats()["x509"] == 0
    assert "PRIVATE" not in repr(found)


PREFIX = "web.yml:4: tls_server_config."
BAD = {
    "no YAML": ("basic_auth_users: [", "web.yml:1: is not valid YAML: did not find expected node content"),
    "empty": (
        "",
        "web.yml:1: is empty, and must be a mapping with the keys tls_server_config, http_server_config, "
        "basic_auth_users, rate_limit",
    ),
    "unknown key": (
        "basic_auth_user: {}\n",
        "web.yml:1: basic_auth_user: unknown key. Did you mean 'basic_auth_users'? Known keys: "
        "basic_auth_users, http_server_config, rate_limit, tls_server_config",
    ),
    "a password": (
        "basic_auth_users:\n  alice: hunter2\n",
        "web.yml:2: basic_auth_users.alice: is no bcrypt hash such as $2y$10$…; make one with "
        "`mailsonde hash-password`",
    ),
    "a salt that bcrypt refuses": (
        f"basic_auth_users:\n  alice: {HASH.replace('zoub', 'zozb')}\n",
        "web.yml:2: basic_auth_users.alice: is no bcrypt hash such as $2y$10$…; make one with "
        "`mailsonde hash-password`",
    ),
    "a number": (
        "basic_auth_users:\n  alice: 123456\n",
        "web.yml:2: basic_auth_users.alice: must be text; a number needs quotes",
    ),
    "cost": (
        f"basic_auth_users:\n  bob: {HASH}\n  alice: {HASH.replace('$10$', '$31$')}\n",
        "web.yml:3: basic_auth_users.alice: the hash has cost 31; use 4 to 16, such as 10: each step doubles "
        "the time of a check",
    ),
    "no cost": (
        f"basic_auth_users: {{a: {HASH.replace('$10$', '$03$')}}}\n",
        "web.yml:1: basic_auth_users.a: the hash has cost 3; use 4 to 16, such as 10: each step doubles the "
        "time of a check",
    ),
    "user": (
        f"basic_auth_users:\n  'a:b': {HASH}\n",
        "web.yml:2: basic_auth_users.a:b: a user name has printable characters without a colon (RFC 7617 "
        "section 2)",
    ),
    "user twice": (
        f"basic_auth_users:\n  a: {HASH}\n  a: {HASH}\n",
        "web.yml:3: basic_auth_users.a: this key appears twice; keep one",
    ),
    "http2": (
        "http_server_config:\n  http2: true\n",
        "web.yml:2: http_server_config.http2: the agent speaks HTTP/1.1 only; remove http2, or set it to "
        "false",
    ),
    "header": (
        "http_server_config:\n  headers:\n    Server: x\n",
        "web.yml:3: http_server_config.headers.Server: unknown key. Known keys: Content-Security-Policy, "
        "Strict-Transport-Security, X-Content-Type-Options, X-Frame-Options, X-XSS-Protection",
    ),
    "value of a header": (
        'http_server_config: {headers: {X-XSS-Protection: "1\\nSet-Cookie: x"}}\n',
        "web.yml:1: http_server_config.headers.X-XSS-Protection: must be one line of printable ASCII",
    ),
    "interval": (
        "rate_limit:\n  interval: soon\n  burst: 1\n",
        "web.yml:2: rate_limit.interval: is not a duration; write a number with its unit, such as 500ms or "
        "1s",
    ),
    "burst": ("rate_limit:\n  interval: 1s\n", "web.yml:1: rate_limit.burst: this key is required"),
    "no certificate": (
        "tls_server_config:\n  key_file: server.key\n",
        "web.yml:1: tls_server_config: cert_file is required",
    ),
    "no TLS": ("tls_server_config: {}\n", "web.yml:1: tls_server_config: cert_file is required"),
    "missing": (
        "tls_server_config:\n  cert_file: gone.crt\n  key_file: server.key\n",
        "web.yml:2: tls_server_config.cert_file: file gone.crt cannot be read: No such file or directory",
    ),
    "no PEM": (
        "tls_server_config:\n  cert_file: web.yml\n  key_file: server.key\n",
        "web.yml:2: tls_server_config.cert_file: file web.yml has no certificate in PEM",
    ),
    "swapped": (
        "tls_server_config:\n  cert_file: server.crt\n  key_file: server.crt\n",
        "web.yml:3: tls_server_config.key_file: file server.crt has no private key in PEM",
    ),
    "encrypted": (
        "tls_server_config:\n  cert_file: server.crt\n  key_file: encrypted.key\n",
        "web.yml:3: tls_server_config.key_file: file encrypted.key is encrypted; the agent cannot ask for "
        "its passphrase, so decrypt it",
    ),
    "another key": (
        "tls_server_config:\n  cert_file: server.crt\n  key_file: other.key\n",
        "web.yml:1: tls_server_config: the key does not belong to the certificate; the server's own comes "
        "first",
    ),
    "weak": (
        "tls_server_config:\n  cert_file: weak.crt\n  key_file: weak.key\n",
        "web.yml:1: tls_server_config: OpenSSL refuses the certificate or a setting: EE_KEY_TOO_SMALL",
    ),
    "both": (
        "tls_server_config:\n  client_ca: &ca |\n{ca}  client_ca_file: ca.crt\n",
        "client_ca_file: client_ca says the same; write one of the two",
    ),
    "unverified": (
        tls("client_auth_type: RequireAnyClientCert"),
        f"{PREFIX}client_auth_type: RequireAnyClientCert accepts certificates that nobody verified, which "
        "Python's TLS cannot do; use VerifyClientCertIfGiven or RequireAndVerifyClientCert",
    ),
    "no such type": (
        tls("client_auth_type: Always"),
        f"{PREFIX}client_auth_type: must be one of 'NoClientCert', 'VerifyClientCertIfGiven' or "
        "'RequireAndVerifyClientCert'",
    ),
    "no CA": (
        tls(VERIFIED),
        f"{PREFIX}client_auth_type: RequireAndVerifyClientCert needs client_ca_file, the CA that issues the "
        "clients' certificates",
    ),
    "idle CA": (
        tls("client_ca_file: ca.crt"),
        "web.yml:1: tls_server_config.client_auth_type: there is a CA for client certificates, and no client "
        "asks for one; set client_auth_type: RequireAndVerifyClientCert, or remove the CA",
    ),
    "names": (
        tls("client_allowed_sans: [a]"),
        f"{PREFIX}client_allowed_sans: needs client_auth_type: RequireAndVerifyClientCert",
    ),
    "old TLS": (
        tls("min_version: TLS10"),
        f"{PREFIX}min_version: TLS10 is not secure (RFC 8996) and not offered; use TLS12 or TLS13",
    ),
    "versions": (
        tls("max_version: TLS12", "min_version: TLS13"),
        f"{PREFIX}max_version: TLS12 is below min_version",
    ),
    "suite of TLS 1.3": (
        tls("cipher_suites: [TLS_AES_128_GCM_SHA256]"),
        f"{PREFIX}cipher_suites[0]: TLS_AES_128_GCM_SHA256 belongs to TLS 1.3, whose suites are always "
        "offered; remove it",
    ),
    "curve": (
        tls("curve_preferences: [P256]"),
        f"{PREFIX}curve_preferences[0]: must be one of 'X25519', 'CurveP256', 'CurveP384' or 'CurveP521'",
    ),
    "curves": (
        tls("curve_preferences: [X25519, CurveP256]"),
        f"{PREFIX}curve_preferences: Python's TLS takes one curve; write one, or remove the key",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_their_message(name: str, files: Path) -> None:
    """Each mistake has its file, line, key and remedy, and shows no secret."""
    text, expected = BAD[name]
    ca = "".join(f"    {line}\n" for line in (files / "ca.crt").read_text().splitlines())
    found = read(files, text.replace("{ca}", ca))
    assert isinstance(found, str)
    assert found == expected or (name == "both" and expected in found)
    assert "hunter2" not in found
    assert "$31$X0h" not in found


def test_unknown_cipher_suites_are_told_with_the_known(files: Path) -> None:
    """The message about an unknown suite lists those that there are."""
    found = read(files, tls("cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]"))
    assert isinstance(found, str)
    assert found.startswith(
        f"{PREFIX}cipher_suites[0]: there is no cipher suite 'TLS_RSA_WITH_RC4_128_SHA'. The"
    )
    assert "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" in found


def test_its_mistakes_are_mistakes_of_the_configuration(tmp_path: Path) -> None:
    """`load` tells a broken web configuration with its own line, and does not read it without secrets."""
    config = tmp_path / "mailsonde.yaml"
    config.write_text("agent: {web_config: web.yml}\nprobes: [{name: mx, kind: mx, domain: example.com}]\n")
    (tmp_path / "web.yml").write_text("basic_auth_users:\n  alice: hunter2\n")
    with pytest.raises(ConfigurationError, match=r"web\.yml:2: basic_auth_users\.alice: is no bcrypt hash"):
        load(config)
    assert load(config, secrets=False).agent.web_config == tmp_path / "web.yml"


def test_the_example(files: Path) -> None:
    """The shipped example is accepted, apart from the certificate that it lacks."""
    found = read(files, (Path(__file__).parents[3] / "config/web.yml").read_text())
    assert isinstance(found, WebConfig), found
    assert set(found.basic_auth_users) == {"prometheus", "alice"}
