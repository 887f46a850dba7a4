"""What a run writes is damaged in every way that bench/damage.py knows: here in a sample of them."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench" / "damage.py"


@pytest.mark.slow
def test_a_damaged_run_ends_with_a_sentence_or_with_the_result_of_an_undamaged_one() -> None:
    command = [sys.executable, str(BENCH), "--seed", "5", "--sample", "24"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "24 of" in done.stdout
