"""Room `cli`: thin commands over the other rooms; errors become one line and an exit code."""

from cloister.cli.app import app, main

__all__ = ["app", "main"]
