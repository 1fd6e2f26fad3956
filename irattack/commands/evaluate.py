"""The success of images that another tool has made of the clean images.

    python -m irattack evaluate FOLDER [name=value …]

FOLDER holds an image for each clean image (`irattack export FOLDER clean`), under the same name,
in RGB of 8 bits and the benchmark's size; PNG is lossless. `benchmark=`, `images=`, `seed=` or
`manifest=` say which clean images, `targets=` who is asked, `norm=` and `eps=` the ball. Images
that are missing are named and left out; those outside the ball are counted, and so is the success
with those counted as no success. The table is printed and written to outputs/<benchmark>/evaluated.
"""

import sys

from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.export import asked
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.pipeline import devices
from irattack.pipeline.exchange import evaluate
from irattack.results.evaluated import write

OF_MAKING = ("attack", "piece", "lam", "protocol")  # on which nothing here depends


def main() -> None:
    """The entry point."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        for word in sys.argv[1:]:
            if word.partition("=")[0].lstrip("+") in OF_MAKING:
                raise InputError(
                    f"{word}: says how images are made, and evaluate takes them as they are; leave "
                    "it out."
                )
        (folder,), cell = asked("evaluate", 1)
        try:
            found = evaluate(cell, folder)
        finally:
            devices.release()
        print(write(cell, folder, found))
