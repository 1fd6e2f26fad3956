"""Where the yamls of the project stand."""

from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"
