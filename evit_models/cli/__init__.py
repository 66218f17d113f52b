"""The command line, `evit`: one file per subcommand, and the few things they share."""

from evit_models.cli.app import evit, main

__all__ = ["evit", "main"]
