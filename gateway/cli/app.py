"""All commands in one place, and the one place where exceptions become lines and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from gateway.cli import (
    checks,
    completion,
    config,
    fleet,
    jobs,
    legacy,
    limits,
    queue,
    rollout,
    schedules,
    service,
    top,
)
from gateway.cli.output import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, ReaderGone, complain, remark
from gateway.errors import GatewayError

EPILOG = """\b
Exit codes:
  0    done
  1    failed: a job that was waited for ended dead or cancelled, a check found
       something bad, another part of the request failed
  2    wrong usage, bad input or configuration; nothing was stored
  3    no such job, or no such schedule
  4    the queue is full, has too many different requirements, or too many jobs
       wait for one parent
  5    a job did not end within the time to wait
  6    Redis cannot be reached or refuses, or did not confirm a durable submit
  130  interrupted (Ctrl-C)
  141  the reader of our output went away

\b
With --json each command writes one JSON value to standard output and nothing
else (`watch`, `run`, `top`, `events --follow`: one object per line); errors are one
{"error": {"kind": ..., "message": ...}} line on standard error.

\b
Settings: options, then the fleet's overrides in Redis (`gateway config set`), then
GATEWAY_... variables, then the file of --config (or GATEWAY_CONFIG), then
defaults; `gateway config show` tells where each value came from. Without a
redis_url the gateway runs a Redis of its own in the data directory, shared by
all gateway processes of this user.
"""

app = typer.Typer(
    name="gateway",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
completion.register(app)
service.register(app)
jobs.register(app)
queue.register(app)
schedules.register(app)
checks.register(app)
config.register(app)
fleet.register(app)
limits.register(app)
legacy.register(app)
rollout.register(app)
top.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code. Errors raised on purpose are told in one line; others are bugs and leave with their traceback.
    """
    as_json = "--json" in arguments
    try:
        code = app(list(arguments), prog_name="gateway", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        context = getattr(error, "ctx", None)
        if context is not None and error.format_message() == context.get_help():  # a group without a command
            remark(error.format_message())
            return 2
        help_command = f"{context.command_path if context else 'gateway'} --help"
        return complain("UsageError", f"{error.format_message()} (see `{help_command}`)", 2, as_json=as_json)
    except GatewayError as error:
        return complain(type(error).__name__, str(error), error.exit_code, as_json=as_json)
    except BaseExceptionGroup as group:
        first = _deliberate(group)
        if first is None:
            raise
        return complain(type(first).__name__, str(first), first.exit_code, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        # Python flushes standard output once more at its end; nobody reads that either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code if isinstance(code, int) else 0


def _deliberate(group: BaseExceptionGroup[BaseException]) -> GatewayError | None:
    """The first error of a group of which every member was raised on purpose; else None."""
    ours, others = group.split(GatewayError)
    if ours is None or others is not None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, GatewayError) else None
