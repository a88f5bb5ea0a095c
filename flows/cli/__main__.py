"""``python -m factsmith.flows.cli``: the command line."""

from factsmith.flows.cli.main import main

main()
