"""What tests share beside fixtures. No test module imports another test module or conftest.py."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
