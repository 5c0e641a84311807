"""``python -m lorascope``, also under ``accelerate launch -m lorascope``."""

from lorascope.cli import main

main()
