"""`irattack [command] [name=value …]`; without a command, one cell is measured."""

import os
import sys
from importlib import import_module

HELP = ("-h", "--help", "help")


def main() -> None:
    """Calls the command that the first argument names."""
    from irattack.commands.cli import joined, one_sentence, version
    from irattack.commands.completion import complete
    from irattack.commands.help import COMMANDS, of_command, overview
    from irattack.errors import unknown

    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where functions of the user's own may stand
    with one_sentence():
        words = sys.argv[1:] = joined(sys.argv[1:])
        if {"-sc", "--shell-completion"} & {*words}:
            complete()
        if words == ["--version"]:
            print(version())
            return
        asks = any(word in HELP for word in words)
        words = [word for word in words if word not in HELP]
        name = words[0] if words else "run"
        if name[0] == "-" or "=" in name:  # settings may come before the command
            name = next((word for word in words if word in COMMANDS), "run")
        if name in words:
            words.remove(name)
        if name not in COMMANDS:
            raise unknown(
                "command",
                name,
                COMMANDS,
                f"expected one of {', '.join(COMMANDS)}, or settings as name=value",
            )
        if asks:
            print(of_command(name) if name in sys.argv else overview(), end="")
            return
        sys.argv[1:] = words
        call = getattr(import_module(COMMANDS[name].module), COMMANDS[name].function)
    call()


if __name__ == "__main__":
    main()
