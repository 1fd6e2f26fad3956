"""`python -m irattack`: see `irattack.commands`."""

from irattack.commands.run import main

if __name__ == "__main__":
    main()
