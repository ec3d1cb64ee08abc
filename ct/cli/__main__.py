"""`python -m ct.cli`: the same as `ct`."""

from ct.cli import main

main()
