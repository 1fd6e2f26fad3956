"""What every command shares: a user's mistake ends in one sentence and exit status 2."""

import contextlib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from irattack.conf import CONF, OWN, PACKAGE, yamls
from irattack.errors import InputError, unknown
from irattack.pipeline import files

WRITING = {  # only then
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file-size limit is reached",
    errno.EROFS: "the file system is read-only",
}
STORAGE = WRITING | {
    errno.EACCES: "that is not permitted",
    errno.EPERM: "that is not permitted",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENOENT: "it is not there and cannot be made",
    errno.EEXIST: "a file is in the way",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk fails",
}
GROUPS = ("attack", "norm", "benchmark", "protocol", "piece")


def stop(sentence: str, status: int = 2) -> NoReturn:
    """Prints a sentence for the user and ends the program."""
    tqdm.write(f"irattack: {sentence}", file=sys.stderr)  # not behind a bar
    raise SystemExit(status)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turns what can go wrong for a user into one sentence; a bug keeps its traceback."""
    try:
        yield
    except BrokenPipeError:  # of `irattack … | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        stop("interrupted; finished shards are kept, run the same command to continue.", 130)
    except InputError as error:
        stop(str(error))
    except HydraException as error:  # before OSError, of which a missing config is one
        stop(explain(error))
    except OmegaConfBaseException as error:
        stop(explain(error))
    except Exception as error:
        if type(error).__module__.startswith("yaml."):  # one that a person wrote
            stop(f"a yaml cannot be read: {' '.join(str(error).split())}.")
        if not isinstance(error, OSError) or error.errno not in STORAGE:
            raise
        stop(_of_storage(error))


def _of_storage(error: OSError) -> str:
    """One sentence for an error on reading, or on writing: of a file, or of Hydra's folders."""
    assert error.errno is not None
    why = STORAGE[error.errno]
    frames = [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)]
    noted = files.WRITING in getattr(error, "__notes__", ())
    if noted or error.errno in WRITING or "mkdir" in frames:
        return (
            f"cannot write {error.filename or 'the output folder'}: {why}; nothing half-written is "
            "left, make room or choose another output=FOLDER, then run the same command to "
            "continue."
        )
    why = "it is not there" if error.errno == errno.ENOENT else why
    return (
        f"cannot read {error.filename or 'a file'}: {why}; put a file there that you may read, or "
        "give another, then run the same command to continue."
    )


REFUSED = (InputError, HydraException, OmegaConfBaseException)  # what settings may end in


def explain(error: InputError | HydraException | OmegaConfBaseException) -> str:
    """One sentence for an error in settings that are given as on the command line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            if cause.options:
                return str(unknown(group, name, [o for o in cause.options if o != "base"]))
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    if found := re.search(r"Could not load '(\w+)/([^']+)'", text):
        return str(unknown(found[1], found[2], yamls(found[1])))
    if found := re.match(r"Could not override '([^']+)'", text):
        return _unknown_setting(found[1])
    if found := re.search(r"Key '([^']+)' is not in struct", text):
        return _unknown_setting(found[1])
    if found := re.match(r"Error parsing override '([^'=]+)' ?missing EQUAL", text):
        return f"{found[1]}: is no setting; settings are given as name=value, such as norm=l2."
    if isinstance(error, OverrideParseException):
        return f"{text.split(' See https')[0]}: settings are given as name=value."
    if "Ambiguous value" in text:
        return f"{text.split(' 1.')[0]}: give one value, or -m to run once for each."
    return text if isinstance(error, ConfigCompositionException) else str(error)


def _unknown_setting(name: str) -> str:
    if name == "piece":
        return "piece=…: write attack=pgd +piece=[…] to compose an attack of pieces."
    keys = re.findall(r"^(\w+):", (CONF / "config.yaml").read_text("utf-8"), re.M)
    names = [key for key in [*keys, *GROUPS] if key not in ("defaults", "hydra", name)]
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{name}=…: no such setting; {hint}`irattack --cfg job` lists them all."


def version() -> str:
    """`irattack --version`: the version, and the commit where there is one."""
    from irattack.pipeline.artifact import commit

    try:
        number = f"irattack {metadata.version('irattack')}"
    except metadata.PackageNotFoundError:  # a copy of the project that is not installed
        number = "irattack"
    return f"{number}, commit {commit(PACKAGE)}"


def joined(words: list[str]) -> list[str]:
    """The arguments with `--config-dir FOLDER`, which irattack reads too, as one word."""
    found: list[str] = []
    for word in filter(None, words):  # as of "$EXTRA" that is empty
        if found and found[-1] in ("--config-dir", "-cd"):
            found[-1] = f"--config-dir={word}"
        else:
            found.append(word)
    for word in found:
        if word.startswith("--config-dir="):
            folder = Path(word.partition("=")[2]).expanduser()
            if not folder.is_dir():
                stop(f"--config-dir={folder}: no such folder; give one with yamls as in conf.")
            os.environ[OWN] = str(folder.resolve())
    return found


FLAGS = (  # Hydra's, of more than one letter
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--info"),
    *("--multirun", "--shell-completion", "--config-path", "--config-name", "--config-dir"),
    *("--experimental-rerun", "-sc", "-cp", "-cn", "-cd"),
)


def tidy_arguments() -> None:
    """Lets flags stand anywhere, `--cfg job` show resolved values, and errors be ours."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # whose errors are raised, too
    logging.raiseExceptions = False  # a log file on a full disk is no reason for a traceback
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no λ shows a ? in its place
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    home = str(Path.home())
    words = [re.sub(r"(?<==)~(?=/|$)", home, word) for word in sys.argv[1:]]  # as a shell would
    sys.argv[1:] = joined(words)
    for word in sys.argv[1:]:
        if re.match(r"--?[a-z]{2}", word) and word.partition("=")[0] not in FLAGS:
            stop(
                f"{word}: no such flag; settings are given as name=value, such as norm=l2, and "
                "`irattack --help` lists the flags."
            )
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: "=" in word and word[0] not in "-./")
    if any(flag in sys.argv for flag in ("--cfg", "-c")) and "--resolve" not in sys.argv:
        sys.argv.append("--resolve")
