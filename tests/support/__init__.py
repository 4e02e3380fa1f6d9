"""Code that tests share, except fixtures. Test modules do not import each other or conftest.py."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
