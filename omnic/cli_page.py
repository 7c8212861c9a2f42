"""The page docs/cli.md: every verb with its arguments, read from the verbs' own parsers."""

from __future__ import annotations

import argparse

from omnic import cli, verbs

__all__ = ["text"]


def text() -> str:
    """Return the page as Markdown."""
    lines = [
        "# The command line",
        "",
        "Generated from the verbs by `make docs`. Exit codes: see [architecture.md](architecture.md#the-command-line).",
        "",
        "```text",
        cli.overview(),
        "```",
    ]
    for name, line in verbs.catalogue().items():
        lines += ["", f"## omnic {name}", "", f"{line[:1].upper()}{line[1:]}.", *_arguments(cli.parser_of(name)[0])]
    return "\n".join(lines)


# argparse's own help text differs between versions of Python, and the page must not.
def _arguments(parser: argparse.ArgumentParser, prefix: str = "") -> list[str]:
    """Return the table of a parser's arguments, and those of its sub-commands after it."""
    rows: list[str] = []
    below: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                below += ["", f"### {prefix}{name}", *_arguments(sub, f"{prefix}{name} ")]
        elif "--help" not in action.option_strings and "--debug" not in action.option_strings:
            rows.append(f"| {_written(action)} | {_meaning(action)} |")
    table = ["", "| argument | meaning |", "|---|---|", *rows] if rows else []
    return [*table, *below]


def _written(action: argparse.Action) -> str:
    """Return an argument as it is written on the command line."""
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    elif isinstance(action.metavar, tuple):
        value = " ".join(action.metavar)
    else:
        value = action.metavar or action.dest.upper()
    if not action.option_strings:
        value = {"*": f"[{value} ...]", "+": f"{value} ...", "?": f"[{value}]"}.get(str(action.nargs), value)
        return f"`{value}`"
    takes_value = action.nargs != 0
    options = ", ".join(f"`{option}`" for option in action.option_strings)
    return f"{options} `{value}`".replace("|", "\\|") if takes_value else options


def _meaning(action: argparse.Action) -> str:
    """Return an argument's help with its defaults filled in."""
    if not action.help:
        return ""
    values = {**vars(action), "prog": "omnic"}
    return (action.help % values).replace("|", "\\|").replace("\n", " ")
