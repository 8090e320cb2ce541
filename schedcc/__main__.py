"""`python -m schedcc`: the command line of the compiler."""

from schedcc.cli import main

main()
