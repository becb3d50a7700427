"""`python -m cloister.cli`: the command `cloister`, for processes that know their interpreter but no path."""

from cloister.cli.app import main

main()
