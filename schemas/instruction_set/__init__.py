"""The instruction set: what a rank can be told to do, and what each instruction touches."""
