"""`python -m stllava` is the command `stllava`; a training that was launched in several processes ends here."""

import sys

from stllava.cli import main
from stllava.progress import place_among_processes

if __name__ == "__main__":
    main()
    _, processes = place_among_processes()
    if processes > 1 and "torch" in sys.modules:
        from stllava.training.processes import leave_and_end

        leave_and_end()
