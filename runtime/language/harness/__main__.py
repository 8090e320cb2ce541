"""`python -m runtime.language.harness ARGUMENTS`: the command `lm_eval`, which knows `schedcc`."""

from lm_eval.__main__ import cli_evaluate

from runtime.language.harness import register

if __name__ == "__main__":
    register()
    cli_evaluate()
