"""README shows `kindling --help` as it is now; every verb and option explains itself.

README has it between `<!-- cli -->` and `<!-- /cli -->`. After a change to the command line,
`.venv/bin/python -m tests.style.test_cli_help` writes it there anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from agent.cli.group import VERBS, kindling
from tests.schemas import NAMES

README = Path(__file__).parents[2] / "README.md"
MARKERS = ("<!-- cli -->\n", "<!-- /cli -->\n")
BLOCK = re.compile(r"(?<=<!-- cli -->\n).*?(?=<!-- /cli -->)", re.S)


def shown() -> str:
    done = CliRunner().invoke(kindling, ["--help"], prog_name="kindling", terminal_width=80)
    assert done.exit_code == 0
    return f"```console\n$ kindling --help\n{done.stdout}```\n"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command under the words that call it."""
    context = click.Context(kindling)
    for verb in VERBS:
        command = kindling.get_command(context, verb)
        assert command is not None
        yield verb, command
        if isinstance(command, click.Group):
            yield from ((f"{verb} {name}", inner) for name, inner in command.commands.items())


def test_readme_shows_the_help_as_it_is() -> None:
    text = README.read_text("utf-8")
    assert [text.count(marker) for marker in MARKERS] == [1, 1]
    found = BLOCK.search(text)
    assert found is not None
    assert found[0] == shown(), (
        "README is behind: run '.venv/bin/python -m tests.style.test_cli_help'"
    )


def test_every_command_says_what_it_does_and_every_option_too() -> None:
    silent = []
    for words, command in commands():
        if not command.help:
            silent.append(words)
        for option in command.params:
            if isinstance(option, click.Option) and not option.help:
                silent.append(f"{words} {option.opts[0]}")
    assert silent == []


def test_every_command_that_answers_has_json_with_a_schema() -> None:
    lacking = []
    for words, command in commands():
        if words == "run" or isinstance(command, click.Group):
            continue
        has_json = any("--json" in option.opts for option in command.params)
        if not has_json or words.replace(" ", "-") not in NAMES:
            lacking.append(words)
    assert lacking == []


def test_the_summary_of_a_verb_fits_on_a_line() -> None:
    assert [verb for verb, line in VERBS.items() if len(line) > 66 or line[-1] != "."] == []


if __name__ == "__main__":
    text = README.read_text("utf-8")
    if not BLOCK.search(text):
        sys.exit(f"{README} lacks the lines <!-- cli --> and <!-- /cli -->")
    README.write_text(BLOCK.sub(lambda _: shown(), text), "utf-8")
