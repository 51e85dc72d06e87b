"""`python -m tunesmith.cli`."""

from tunesmith.cli.main import main

main()
