"""`irattack convert FILE.npy OUT.safetensors`: published weights as safetensors."""

import sys
from pathlib import Path

from irattack.commands.cli import one_sentence
from irattack.errors import InputError
from irattack.hashing import sha256
from irattack.models.convert import convert, read
from irattack.pipeline.artifact import to_bytes
from irattack.pipeline.files import write_bytes


def main() -> None:
    """The entry point."""
    with one_sentence():
        if len(sys.argv) != 3 or not sys.argv[2].endswith(".safetensors"):
            raise InputError("usage: irattack convert FILE.npy OUT.safetensors")
        out = Path(sys.argv[2])
        state = convert(read(Path(sys.argv[1])))
        try:
            write_bytes(out, to_bytes(state))
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror}.") from None
        print(f"{out}: {len(state)} arrays, SHA-256 {sha256(out)}")
