"""The fields of spam filters that mark a message as junk."""

from __future__ import annotations

import pytest

from probes.messages.junk import junk_mark


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("X-Spam-Flag: YES", "x-spam-flag"),
        ("X-Spam-Flag: NO", None),
        ("X-Spam-Status: Yes, score=8.1 required=5.0\r\n\ttests=BAYES_99", "x-spam-status"),
        ("X-Spam-Status: No, score=-1.9", None),
        ("X-Spam: Yes", "x-spam"),
        ("X-Rspamd-Action: add header", "x-rspamd-action"),
        ("X-Rspamd-Action: no action", None),
        ("X-MS-Exchange-Organization-SCL: 5", "x-ms-exchange-organization-scl"),
        ("X-MS-Exchange-Organization-SCL: 9", "x-ms-exchange-organization-scl"),
        ("X-MS-Exchange-Organization-SCL: 1", None),
        ("X-MS-Exchange-Organization-SCL: -1", None),
        ("X-Forefront-Antispam-Report: CIP:192.0.2.1;CTRY:;SCL:6;SFV:NSPM;", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: CIP:192.0.2.1;SCL:1;SFV:NSPM;CAT:NONE;", None),
        ("X-Forefront-Antispam-Report: SCL:-1;SFV:SPM;CAT:SPM;", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: SCL:1;CAT:HPHISH;DIR:INB", "x-forefront-antispam-report"),
        ("Subject: X-Spam-Flag: YES", None),
        ("x-spam-flag:\r\n yes", "x-spam-flag"),
        ("X-Spam-Flag: NO\r\nX-Spam-Flag: YES", "x-spam-flag"),
        ("X-Spam-Flag: yesterday", None),
        ("X-Spam-Status: Yes, score=6.1 required=5.0 tests=GTUBE", "x-spam-status"),
        ("X-Spam-Status: Yes", "x-spam-status"),
        ("X-Spam-Status: No, score=-1.9 required=5.0 tests=BAYES_00,YES", None),
        ("X-Spam: No", None),
        ("X-Spam-Level: *******", None),
        ("X-Rspamd-Action: Rewrite Subject", "x-rspamd-action"),
        ("X-Rspamd-Action: reject", "x-rspamd-action"),
        ("X-Rspamd-Action: soft reject", None),
        ("X-Rspamd-Action: greylist", None),
        ("X-MS-Exchange-Organization-SCL: 4", None),
        ("X-MS-Exchange-Organization-SCL: 0", None),
        ("X-MS-Exchange-Organization-SCL: 50", None),
        ("X-MS-Exchange-Organization-SCL: \u0665", None),
        (
            "X-Forefront-Antispam-Report: CIP:192.0.2.1;CTRY:;LANG:en;SCL:5;SRV:;IPV:NLI;SFV:NSPM",
            "x-forefront-antispam-report",
        ),
        (
            "X-Forefront-Antispam-Report: CIP:192.0.2.1;CTRY:;LANG:en;\r\n SCL:6;SRV:;SFV:SPM;CAT:SPM",
            "x-forefront-antispam-report",
        ),
        ("X-Forefront-Antispam-Report: CIP:192.0.2.1;SCL:1;SFV:NSPM;CAT:NONE;SFS:(13230040)", None),
        ("X-Forefront-Antispam-Report: SCL:-1;SFV:SKN;H:SCL:9.example.test;PTR:SFV:SPM", None),
        ("X-Forefront-Antispam-Report: SFV:SPM;", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: SCL:1;SFV:SKB", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: SFV:NSPM;CAT:HPHISH", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: CAT:HPHSH", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: CAT:PHSH", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: CAT:HSPM", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: CAT:BULK", None),
        ("Subject: x\r\n\r\nX-Spam-Flag: YES", None),
        ("X-Spam-Flag : YES", "x-spam-flag"),
        ("X-Barracuda-Spam-Flag: YES", "x-barracuda-spam-flag"),
        (
            "X-Barracuda-Spam-Status: Yes, SCORE=7.20 using global scores of TAG_LEVEL=3.5\r\n"
            "\tKILL_LEVEL=9.0 tests=BSF_SC0",
            "x-barracuda-spam-status",
        ),
        ("X-Barracuda-Spam-Status: No, SCORE=0.00 using per-user scores of TAG_LEVEL=1000.0", None),
        ("X-Barracuda-Spam-Score: 7.20", None),
        (
            "X-MailScanner-SpamCheck: spam, SpamAssassin (not cached,\r\n\tscore=9.1, required 5)",
            "x-mailscanner-spamcheck",
        ),
        (
            "X-Example-Univ-MailScanner-SpamCheck: spam(blacklisted), SBL+XBL",
            "x-example-univ-mailscanner-spamcheck",
        ),
        ("X-Example-MailScanner-SpamCheck: not spam, SpamAssassin (score=0.1, required 5)", None),
        ("X-Example-MailScanner-SpamCheck: spammy", None),
        ("X-Example-MailScanner-SpamScore: sssssssss", None),
        ("Subject: x\r\n\r\nX-Example-MailScanner-SpamCheck: spam", None),
        ("X-Bogosity: Spam, tests=bogofilter, spamicity=1.000000, version=1.2.5", "x-bogosity"),
        ("X-Bogosity: Yes, tests=bogofilter, spamicity=0.999999", "x-bogosity"),
        ("X-Bogosity: Ham, tests=bogofilter, spamicity=0.000000, version=1.2.5", None),
        ("X-Bogosity: Unsure, tests=bogofilter, spamicity=0.520000, version=1.2.5", None),
        (
            "X-Proofpoint-Spam-Details: rule=spam policy=default score=100 phishscore=0\r\n"
            " classifier=spam adjust=0 reason=mlx",
            "x-proofpoint-spam-details",
        ),
        ("X-Proofpoint-Spam-Details: rule=inbound_spam_definite score=99", "x-proofpoint-spam-details"),
        ("X-Proofpoint-Spam-Details: policy=default rule=phish score=99", "x-proofpoint-spam-details"),
        ("X-Proofpoint-Spam-Details: rule=notspam policy=default score=0 classifier=spam", None),
        ("X-Proofpoint-Spam-Details: rule=outbound_check_notspam policy=outbound score=0", None),
        ("X-Proofpoint-Spam-Details: policy=default score=0 classifier=spam", None),
    ],
)
def test_junk_marks(line: str, mark: str | None) -> None:
    """Filters' fields are read as the filters mean them."""
    assert junk_mark(f"Received: by x\r\n{line}\r\nSubject: y\r\n\r\n".encode()) == mark
