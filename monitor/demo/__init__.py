"""What `mailsonde demo` starts: a sandbox mail server, an agent and a live view, all on this machine."""
