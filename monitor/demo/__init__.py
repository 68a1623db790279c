"""`mailsonde demo`: a sandbox mail server, an agent and a live view, all on this machine."""
