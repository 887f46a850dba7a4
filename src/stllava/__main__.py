"""`python -m stllava` is the command `stllava`; a training that was launched in several processes ends here."""

import sys

from stllava.cli import main

if __name__ == "__main__":
    main()
    if "torch" in sys.modules:
        from stllava.training.processes import leave_and_end

        leave_and_end()
