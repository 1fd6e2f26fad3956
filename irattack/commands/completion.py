"""Completion in a shell, which Hydra gives: here of the words that stand before its settings."""

import os

from irattack.commands.help import COMMANDS
from irattack.conf import yamls


def complete() -> None:
    """Prints the commands, tables or kinds that may come next; then Hydra adds settings.

    Hydra reads from COMP_LINE what has been typed, from which the words of a command are removed.
    Ends the program where no setting can stand.
    """
    typed = os.environ.get("COMP_LINE", "")
    if not typed:
        return
    program, *given = typed.split()
    last = "" if typed[-1] == " " or not given else given.pop()
    if given and given[0] in COMMANDS:
        command = given.pop(0)
        choices = names(command)
        if choices and not given and "=" not in last:
            fitting = [name for name in choices if name.startswith(last)]
            if fitting or "[" not in COMMANDS[command].arguments.split()[0]:
                print(*fitting)
                raise SystemExit(0)
            choices = []  # a name that may be left out
        given = given[1:] if choices else given
    elif not given:
        print(*(name for name in COMMANDS if name.startswith(last)), end=" ")
    os.environ["COMP_LINE"] = " ".join([program, *given, last])


def names(command: str) -> list[str]:
    """What may come first after a command."""
    if command == "ls":
        from irattack.commands.ls import KINDS

        return list(KINDS)
    if "TABLE" in COMMANDS[command].arguments:
        return sorted({**yamls("table"), **yamls("figure")})
    return []
