"""`python -m runtime`: the same as `pipeval`, for launchers such as torchrun."""

from runtime.entry import main

if __name__ == "__main__":
    main()
