"""The loops of examples/: the shell's really makes a round, the others give the same commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import teach
from stllava.data.prepare import prepare
from stllava.data.sources import PhantomData
from stllava.records import Answers, Judgment
from stllava.store import read_manifest, read_records

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPS = ("loop.sh", "slurm.sh", "kubernetes.sh", "skypilot.sh")
STAND_INS = {
    "sbatch": r"""
import os, re, subprocess, sys
flags, command = sys.argv[1:-2], sys.argv[-1]
array = next((word for word in flags if word.startswith("--array=")), "--array=0-0")
assert not any(word.startswith("--dependency=afterok:") and not word[21:].isdigit() for word in flags)
for number in range(*(int(bound) + place for place, bound in enumerate(array[8:].split("-")))):
    subprocess.run(["sh", "-c", command], check=True, env=os.environ | {"SLURM_ARRAY_TASK_ID": str(number)})
print(4711)
""",
    "kubectl": r"""
import os, subprocess, sys, yaml
if sys.argv[1] == "get":
    print("Complete")
elif sys.argv[1] == "apply":
    job = yaml.safe_load(sys.stdin)["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert container["image"] == "here" and job["completionMode"] == "Indexed"
    own = {one["name"]: one["value"] for one in container["env"]}
    for index in range(job["completions"]):
        environment = os.environ | own | {"JOB_COMPLETION_INDEX": str(index)}
        subprocess.run(container["command"], check=True, env=environment)
""",
    "sky": r"""
import os, subprocess, sys, yaml
if sys.argv[1] in ("launch", "exec"):
    task = yaml.safe_load(open(sys.argv[-1]))
    own = dict([sys.argv[sys.argv.index("--env") + 1].split("=", 1)])
    for rank in range(task["num_nodes"]):
        nodes = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(task["num_nodes"])}
        subprocess.run(["sh", "-euc", task["run"]], check=True, env=os.environ | own | nodes)
""",
    "stllava": r"""
import os, sys
with open(os.environ["SAID"], "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\n")
""",
}


def say(loop: str, folder: Path) -> list[str]:
    """The commands that a loop gives, in their order but for those of one stage's shards."""
    tools, said = folder / "bin", folder / "said.txt"
    tools.mkdir()
    for name, code in STAND_INS.items():
        (tools / name).write_text(f"#!{sys.executable}{code}")
        (tools / name).chmod(0o755)
    environment = os.environ | {"SAID": str(said), "IMAGE": "here", "PATH": f"{tools}:{os.environ['PATH']}"}
    words = f"set -a; . examples/round.env; set +a; sh examples/{loop}"
    subprocess.run(["sh", "-c", words], cwd=EXAMPLES.parent, env=environment, check=True, stdout=subprocess.DEVNULL)
    return said.read_text().splitlines()


@pytest.mark.slow
def test_every_loop_gives_the_commands_of_a_whole_round(tmp_path: Path) -> None:
    rounds = {}
    for loop in LOOPS:
        (tmp_path / loop).mkdir()
        rounds[loop] = say(loop, tmp_path / loop)
    words = [line.split()[0] for line in rounds["loop.sh"]]
    steps = [word for place, word in enumerate(words) if place == 0 or words[place - 1] != word]
    assert steps == ["ask", "gather", "answer", "gather", "judge", "gather", "pair", "dpo", "evaluate", "gather"]
    shards = [re.search(r"--shard (\S+)", line) for line in rounds["loop.sh"]]
    assert sorted(found[1] for found in shards if found) == sorted(4 * [f"{number}/8" for number in range(1, 9)])
    for loop in LOOPS[1:]:
        assert sorted(rounds[loop]) == sorted(rounds["loop.sh"]), loop
        assert [line.split()[0] for line in rounds[loop]] == words, loop


@pytest.mark.slow
def test_the_shell_loop_makes_a_round_of_shards(tmp_path: Path) -> None:
    prepare(PhantomData(labelled=8, unlabelled=4, validation=4, test=4, size=64), seed=7, to=tmp_path / "data")
    data = tmp_path / "data"
    model = teach(data / "conversations.jsonl", data / "images", to=tmp_path / "sft", epochs=40)
    (tmp_path / "loop").write_text(
        f"#!{sys.executable}\nfrom stllava.cli import main\nif __name__ == '__main__':\n    main()\n"
    )
    (tmp_path / "loop").chmod(0o755)
    environment = os.environ | {
        "STLLAVA": str(tmp_path / "loop"),
        "POLICY": str(model),
        "ROOT": str(data / "images"),
        "NEW": str(data / "images" / "unlabelled"),
        "LABELLED": str(data / "conversations.jsonl"),
        "TEST": str(data / "phantom.jsonl"),
        "WORK": str(tmp_path / "round-1"),
        "SHARDS": "2",
        "ASK_FLAGS": "--questions 3 --chunk 2 --sampling.temperature 0.6 --sampling.max-new-tokens 16",
        "ANSWER_FLAGS": "--chunk 3 --num-answers 4 --sampling.temperature 2 --sampling.max-new-tokens 6",
        "JUDGE_FLAGS": "--chunk 4 --expert scripted --scripted.prefer no yes ct mr x left right chest",
        "PAIR_FLAGS": "--no-balance --margin 0.01 --min-chosen-score 0 --max-denial-share 1",
        "DPO_FLAGS": "--epochs 1 --batch-size 2",
        "EVALUATE_FLAGS": "--chunk 4 --sampling.max-new-tokens 6",
    }
    made = subprocess.run(["sh", str(EXAMPLES / "loop.sh")], env=environment, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    work = tmp_path / "round-1"
    assert len(read_records(work / "answer", "answers", Answers)) == len(read_records(work / "judge", "judgments", Judgment))
    assert read_manifest(work / "dpo").counts_out > 0
    assert read_manifest(work / "evaluate").counts_out > 0
    assert not list(work.glob("*/shards"))
