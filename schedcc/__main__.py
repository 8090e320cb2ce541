"""`python -m schedcc`: the command line of the compiler."""

from schedcc.entry import main

main()
