"""``python -m monitor`` is ``mailsonde``."""

from monitor.commands import main

main()
