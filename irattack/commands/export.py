"""The images of a cell as files, for other tools.

    python -m irattack export FOLDER [STEP] [name=value …]

FOLDER gets an image NAME.png for each clean image, in RGB of 8 bits, as the targets were asked
about it, and manifest.json: settings, key, step, ε and commit, and of each file its name, label and
SHA-256. The attack is run where its images are not on the disk. STEP is

    last           (if it is left out) the last step
    10             the tenth recorded step
    leave-one-out  of each image the step that the others choose, by the answers of one target
    clean          the images before any attack, for a tool that attacks them itself
"""

import re
import sys

from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.composing import composed, hydra
from irattack.commands.launch import divided
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.pipeline import devices
from irattack.pipeline.cell import Cell
from irattack.pipeline.exchange import check_step, export
from irattack.pipeline.images import check_data
from irattack.pipeline.settings import settings_of


def asked(command: str, most: int) -> tuple[list[str], Cell]:
    """The words of the command line that are no settings, of which FOLDER is one, and the cell.

    Args:
        command: its name.
        most: how many words it takes.
    """
    words = [word for word in sys.argv[1:] if not re.match(r"-|[^./].*=", word)]
    launcher, rest = divided([word for word in sys.argv[1:] if word not in words])
    if launcher:
        raise InputError(f"{launcher[0]}: {command} works on one cell, here; leave it out.")
    if not 1 <= len(words) <= most or not all(words):
        raise InputError(
            f"{' '.join([command, *words]).strip()}: give one FOLDER (./FOLDER if it has a = in "
            "its name), then settings."
        )
    with hydra():
        settings = settings_of(composed(rest))
    check_data(settings)
    return words, Cell(settings)


def main() -> None:
    """The entry point."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        (folder, *step), cell = asked("export", 2)
        at = step[0] if step else "last"
        check_step(cell, at)
        try:
            manifest = export(cell, folder, at)
        finally:
            devices.release()
        what = "clean images" if at == "clean" else f"images of {cell.title}, step {at}"
        print(f"{cell.cfg.images} {what}, written to {manifest.parent} with {manifest.name}.")
