"""The verbs of `kindling`, each imported only when it is used.

A verb is a click command called `command` in the module of the same name in this package (hyphens
become underscores). The table below is the only place to add one.
"""

from __future__ import annotations

import importlib

import click

# Verb to the line that `kindling --help` shows. Help must not import every verb's dependencies.
VERBS = {
    "check": "Say what this host still lacks, with the command that mends it.",
    "run": "Run the agent in the foreground, as the user kindling.",
}


class Verbs(click.Group):
    """A group whose commands are modules that nobody has imported yet."""

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


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kindling", message="kindling %(version)s")
def kindling() -> None:
    """Run container images as serverless functions, without root."""
