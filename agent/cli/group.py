"""The verbs of `kindling`, each imported only when it is used.

A verb is a click command called `command` in the module of the same name in this package (hyphens
become underscores). The table below is the only place to add one. How a verb's end becomes an exit
status, and its error a line on stderr, is in `outcome.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from agent.cli import outcome

# Verb to the line that `kindling --help` shows. Help must not import every verb's dependencies.
VERBS = {
    "check": "Say what this host still lacks, with the command that mends it.",
    "run": "Run the agent in the foreground, as the user kindling.",
    "status": "Show the node, its functions, their instances and the images.",
    "deploy": "Deploy a function from a TOML file, from options, or from both.",
    "invoke": "Call a function and print its reply.",
    "logs": "Print a function's log, and follow it.",
    "remove": "Remove a function with all its versions.",
    "image": "List, show, pull, import, index and remove images.",
    "gc": "Remove images that no function needs.",
    "drain": "Take no new work and wait until nothing is in flight.",
    "undrain": "Take work again.",
    "reload": "Take the installed code and the configuration; nothing ends.",
}


class VerbGroup(click.Group):
    """A group whose commands are modules that nobody has imported yet."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; ends the process with its exit status, as click does."""
        arguments = list(sys.argv[1:] if args is None else args)

        def run() -> object:
            return super(VerbGroup, self).main(
                arguments, prog_name, complete_var, standalone_mode=False, **extra
            )

        if not standalone_mode:
            return run()
        sys.exit(outcome.status_of(run, arguments))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb that the arguments name."""
        invoke = super().invoke
        return outcome.quiet_at_a_closed_pipe(lambda: invoke(ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"agent.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    """Print the installed package's version; a working tree that is not installed has none."""
    if not asked or context.resilient_parsing:
        return
    from importlib import metadata

    try:
        click.echo(f"kindling {metadata.version('kindling')}")
    except metadata.PackageNotFoundError:
        click.echo("kindling, not installed: run from its working tree")
    context.exit()


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
The agent is found at KINDLING_SOCKET (default /run/kindling/kindling.sock, open
to root and the group kindling). `kindling VERB --help` tells a verb's options.
Every verb but run takes --json; errors are then {"error": {...}} on stderr.
Exit status: 0 done, 1 failed, 2 wrong use.

\b
First steps:
  kindling check
  kindling image import hello.tar --name hello:1
  kindling deploy --name hello --image hello:1 --contract fc --wait
  kindling invoke hello --data '{"name": "world"}' --trace
  kindling logs hello -f""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def kindling() -> None:
    """Run container images as serverless functions, without root."""
