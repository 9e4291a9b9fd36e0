"""`python -m geophone` is the command line."""

from geophone.cli import main

main()
