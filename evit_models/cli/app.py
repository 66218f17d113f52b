"""The `evit` command: its subcommands, and what a user sees when something goes wrong."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

from evit_models.cli.bench import bench
from evit_models.cli.classify import classify
from evit_models.cli.common import UserError, debug_option, failures, unlucky
from evit_models.cli.demo import demo
from evit_models.cli.doctor import doctor
from evit_models.cli.eval import evaluate_command
from evit_models.cli.info import info
from evit_models.cli.models import models
from evit_models.cli.prepare import prepare
from evit_models.cli.train import train


class _InOrder(click.Group):
    """Commands in the order in which they are added: the one in which people need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="evit", message="%(prog)s %(version)s")
@debug_option
@click.pass_context
def evit(context: click.Context) -> None:
    """Video classification on fused kernels: look, classify, train, evaluate, measure."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (info, models, classify, prepare, train, evaluate_command, doctor, bench, demo):
    evit.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is success, 2 a mistake in what the user gave, 130 an interruption, 1 anything else. Every
    failure is one line on stderr; ``--debug``, anywhere, adds the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    # A load report is printed by the command that loads; without a handler it would come twice.
    logging.getLogger("evit_models").addHandler(logging.NullHandler())
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("default")
                warnings.showwarning = _show_warning
            code = evit.main(args=arguments, prog_name="evit", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        _forget_stdout()
        return 1
    except click.ClickException as error:
        _say(_usage_text(error), debug)
        return error.exit_code
    except Exception as error:
        if isinstance(error, failures()):
            _say(f"error: {error}", debug)
            return UserError.exit_code
        if isinstance(error, unlucky()):
            _say(f"error: {error}", debug)
            return 1
        hint = "" if debug else " (--debug shows where)"
        _say(f"error: {type(error).__name__}: {error}{hint}", debug)
        return 1


def _usage_text(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    text = f"error: {error.format_message()}"
    if isinstance(error, click.UsageError) and not isinstance(error, UserError) and context:
        text += f" (see {context.command_path} --help)"
    return text


def _say(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo("evit: " + " ".join(text.split()), err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Warnings about the user's video are for the user; those about code are for --debug."""
    if category.__module__.startswith("evit_models"):
        click.echo(f"evit: warning: {message}", err=True)


def _forget_stdout() -> None:
    """Whoever read our output has left: keep the interpreter from flushing into the void."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
