"""Failures of `tokenizers` that are no exceptions of Python."""


def is_panic(error: BaseException) -> bool:
    """Whether a library's code in Rust has panicked, which is no `Exception`."""
    return type(error).__name__ == "PanicException"
