"""Messages of NTLM for scripted servers."""

from __future__ import annotations

import base64

CHALLENGE = base64.b64decode(
    "TlRMTVNTUAACAAAABAAEADgAAAA1goriAN0wb9xiv9QAAAAAAAAAACwALAA8AAAABgEAAAAAAA9WAE0AAgAEAFYATQABAAQAVgBN"
    "AAQAAAADAAQAdgBtAAcACAAuj0cWhn/dAQAAAAA="
)
"""A challenge of Samba's ntlm_auth."""

SIGNATURE = base64.b64encode(b"NTLMSSP\0")[:8].decode()
"""How every message of NTLM begins in base64."""
