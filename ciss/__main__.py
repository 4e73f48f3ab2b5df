"""`python -m ciss`, and under torchrun `-m ciss`: the command `ciss`."""

from ciss.cli import main

if __name__ == "__main__":
    main()
