"""`python -m irattack [command] [name=value …]`; without a command, one cell is measured."""

import sys
from importlib import import_module

COMMANDS = {
    "reproduce": "irattack.commands.reproduce:main",
    "aggregate": "irattack.commands.reproduce:aggregate",
    "report": "irattack.commands.report:main",
    "status": "irattack.commands.status:main",
    "clean": "irattack.commands.status:clean",
    "estimate": "irattack.commands.estimate:main",
    "gpu": "irattack.commands.gpu:main",
    "bench": "irattack.commands.bench:main",
    "convert": "irattack.commands.convert:main",
    "run": "irattack.commands.run:main",
}


def main() -> None:
    """Calls the command that the first argument names."""
    from irattack.commands.cli import one_sentence
    from irattack.errors import unknown

    with one_sentence():
        name = sys.argv[1] if sys.argv[1:] else "run"
        if name[0] == "-" or "=" in name:
            name = "run"
        elif sys.argv[1:]:
            del sys.argv[1]
        if name not in COMMANDS:
            raise unknown(
                "command",
                name,
                COMMANDS,
                f"expected one of {', '.join(COMMANDS)}, or settings as name=value",
            )
        module, _, function = COMMANDS[name].partition(":")
        call = getattr(import_module(module), function)
    call()


if __name__ == "__main__":
    main()
