"""`python -m stllava` is the command `stllava`."""

from stllava.cli import main

if __name__ == "__main__":
    main()
