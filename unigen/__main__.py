"""``python -m unigen`` is the command ``unigen``."""

from unigen.cli import main

main()
