"""`make docs`: the documentation as pages that open from the disk and ask the network for nothing.

mkdocs.yml is what Zensical is told, docs/ the text; signatures and docstrings are read from the
code. A warning of any kind ends the build. The font of the equations, STIX Two Math, is that of the
package ziamath.
"""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
FONT = "fonts/STIXTwoMath-Regular.ttf"


def build() -> Path:
    """Builds site/, and returns its first page.

    Raises:
        SystemExit: a link that leads nowhere, an object that there is not, a docstring that says
            what the code does not; all of them are named.
    """
    spec = find_spec("ziamath")
    if spec is None or spec.origin is None:
        raise SystemExit("The packages of the docs are missing: `uv sync --group docs`.")
    shutil.rmtree(ROOT / ".cache", ignore_errors=True)  # what it knows of is not warned of again
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)  # without colours
    if "issues found" in said or "issue found" in said:
        said = said.partition("Traceback")[0]  # which tells of --strict alone
    if done.returncode or "griffe:" in said or "WARNING" in said:
        raise SystemExit(said)
    shutil.copy(Path(spec.origin).parent / FONT, ROOT / "site")
    return ROOT / "site" / "index.html"


if __name__ == "__main__":
    print(f"Open {build()}")
