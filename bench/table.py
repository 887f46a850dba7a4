"""The tables of docs/results.md that come from bench/results/*.json: `python bench/table.py` prints them.

With `--write` each replaces the one behind its mark in docs/results.md, `<!-- NAME: bench/table.py -->`.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS.parent.parent / "docs" / "results.md"
SHAPES = ("llava", "one-question", "wide", "wide-best", "small-image")
LOADS = ("self-asking", "slake")


def read(pattern: str) -> list[dict[str, Any]]:
    """The stored results whose names match, in order."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def times(spread: dict[str, float]) -> str:
    """A ratio with its spread."""
    return f"**{spread['median']:.1f}×** [{spread['low']:.1f}, {spread['high']:.1f}]"


def rows(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def captioned(head: Iterable[str], groups: Iterable[tuple[str, Iterable[Iterable[str]]]]) -> str:
    """A table for each group of rows, below a line that says what the group is."""
    head = list(head)
    return "\n\n".join(f"*{caption}*\n\n{rows(head, body)}" for caption, body in groups)


def where(result: dict[str, Any]) -> str:
    """Device and commit."""
    return f"{result['cores']} cores of {result['device']}, {result['commit'][:7]}"


def gigabytes(runs: list[dict[str, float]], key: str) -> float:
    """Median of a memory figure."""
    return median(run[key] for run in runs) / 1e9


def dpo() -> str:
    """Learning against TRL."""
    found = sorted(read("dpo-*.json"), key=lambda one: SHAPES.index(one["setting"]["shape"]))
    body = []
    for one in found:
        ours, peer = one["runs"]["ours"], one["runs"][one["peer"]]
        body.append(
            [
                f"{one['setting']['shape']}, {one['setting']['model']}",
                f"{one['pairs_per_second']['ours']['median']:.2f}",
                f"{one['pairs_per_second'][one['peer']]['median']:.2f}",
                times(one["seconds_of_peer_over_ours"]),
                times(one["seconds_of_peer_over_anew"]),
                f"{gigabytes(ours, 'added_bytes'):.2f} / {gigabytes(peer, 'added_bytes'):.2f}",
                f"{gigabytes(ours, 'peak_bytes'):.2f} / {gigabytes(peer, 'peak_bytes'):.2f}",
                where(one),
            ]
        )
    head = (
        "shape, model",
        "ours, pairs/s",
        "TRL, pairs/s",
        "TRL's time over ours",
        "reference anew",
        "added GB, ours / TRL",
        "peak GB",
        "where",
    )
    return rows(head, body)


def generate() -> str:
    """Generation against the plain way and vLLM."""
    found = sorted(read("generate-*.json"), key=lambda one: LOADS.index(one["setting"]["load"]))
    body = []
    for one in found:
        rates = {name: f"{rate['median']:.2f}" for name, rate in one["texts_per_second"].items()}
        over = one["ours_over"]
        body.append(
            [
                f"{one['setting']['load']}, {one['setting']['model']}",
                rates["ours"],
                rates["plain"],
                times(over["plain"]),
                rates.get("vllm", "not measured"),
                times(over["vllm"]) if "vllm" in over else "not measured",
                where(one),
            ]
        )
    head = ("load, model", "ours, texts/s", "plain, texts/s", "ours over plain", "vLLM, texts/s", "ours over vLLM", "where")
    return rows(head, body)


def limit() -> str:
    """The step against matrix products."""
    body = []
    for one in read("limit-*.json"):
        share = one["share_of_product_rate"]
        body.append(
            [
                f"{one['shape']}, {one['model']}",
                f"{one['needed_operations'] / 1e9:.0f}",
                f"{one['step_seconds']['median']:.2f}",
                f"{one['product_rate']['median'] / 1e9:.0f}",
                f"**{share['median']:.0%}** [{share['low']:.0%}, {share['high']:.0%}]",
                ", ".join(f"{name} {value:.0%}" for name, value in one["profile"].items()),
                where(one),
            ]
        )
    head = ("shape, model", "needed GFLOP", "step, s", "products, GFLOP/s", "share reached", "profile", "where")
    return rows(head, body)


def scale() -> str:
    """Cost against size."""
    body = []
    for one in read("scale-*.json"):
        for run in one["runs"]:
            a, b = (1000 * run[key] / run["images"] for key in ("answering_seconds", "learning_seconds"))
            sizes = [str(run[key]) for key in ("images", "questions", "answers")]
            body.append([*sizes, f"{a:.1f}", f"{b:.1f}", f"{run['added_bytes'] / 1e6:.0f}", where(one)])
    head = ("images", "questions", "answers", "answering, ms an image", "learning, ms an image", "added MB", "where")
    return rows(head, body)


def million() -> str:
    """Memory and time of stages of records, each size's processor time beside that of the smallest."""
    body = []
    for one in read("million-*.json"):
        runs = sorted(one["runs"], key=lambda run: (run["stage"], run["completions"]))
        first: dict[str, float] = {}
        for run in runs:
            each = run["processor_seconds"] / run["completions"] * 1e6
            growth = each / first.setdefault(run["stage"], each)
            times = [f"{run['seconds']:,.0f}", f"{each:.0f}", f"{growth:.2f}", f"{run['load']:.0f}"]
            place = where({**one, "commit": run["commit"]})
            body.append([run["stage"], f"{run['completions']:,}", *times, f"{run['peak_bytes'] / 1e6:,.0f}", place])
    head = (
        "stage",
        "completions",
        "seconds",
        "processor seconds a million",
        "times the smallest's",
        "load",
        "peak MB",
        "where",
    )
    return rows(head, body)


def memory() -> str:
    """Calculated against measured memory of a training."""
    body = []
    for one in read("memory-*.json"):
        for name, run in one["rows"].items():
            sizes = [f"{run[key] / 2**20:.0f}" for key in ("calculated", "measured")]
            learned = f"{run['learned'] / 1e6:.1f} of {run['parameters'] / 1e6:.1f}"
            body.append([name, learned, *sizes, f"**{run['calculated'] / run['measured'] - 1:+.1%}**", where(one)])
    return rows(("shape, stage", "learned, M", "calculated MiB", "measured MiB", "off by", "where"), body)


def judge() -> str:
    """Calls to an expert's endpoint."""
    body = []
    for one in read("judge-*.json"):
        for name, seconds in (("slow", one["setting"]["seconds"]), ("tenth", 0.0), ("all", 0.0)):
            run, limit = one["runs"][name], f"{one['limit_calls_per_second']:.0f}" if seconds else "–"
            counts = [f"{run['comparisons']:,.0f}", f"{run['calls']:,.0f}", f"{seconds:g}", limit]
            body.append([*counts, f"{run['calls_per_second']:.1f}", f"{run['added_bytes'] / 1e6:.0f}", where(one)])
    head = ("comparisons", "calls", "seconds a call", "endpoint's limit, calls/s", "calls/s", "added MB", "where")
    return rows(head, body)


def expert() -> str:
    """What an expert's quality buys."""
    body = []
    for one in read("expert-*.json"):
        for run in one["runs"]:
            kind = [f"{run['wrong']:.0%}", f"{run['order_bias']:.0%}", str(run["orders"]), str(run["k"]), f"{run['pairs']:,}"]
            gains = [
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*run["gains"][metric]) if metric in run["gains"] else "–"
                for metric in ("open_exact_match", "closed_accuracy")
            ]
            body.append([*kind, f"{run['worse_chosen']:.1%}", f"{run['tie_share']:.1%}", *gains, where(one)])
    head = ("wrong", "by order", "orders", "K", "pairs", "worse chosen", "ties", "open EM, points", "closed, points", "where")
    return rows(head, body)


def share(spread: dict[str, float] | None) -> str:
    """A ratio below or about one with its spread."""
    return "–" if spread is None else f"**{spread['median']:.2f}** [{spread['low']:.2f}, {spread['high']:.2f}]"


def intake() -> str:
    """How near importing pictures comes to decoding them."""
    body = []
    for one in read("intake-*.json"):
        rates = [f"{one['images_per_second'][side]['median']:.0f}" for side in ("decoder", "import")]
        shares = [share(one["share_of"].get(side)) for side in ("decoder", "quickest", "script")]
        resumed = one["resumed"]
        again = "not tried" if resumed is None else "the same" if resumed["same_output"] else "NOT the same"
        memory = f"{one['peak_mib_at_a_tenth']:.0f} / {one['peak_mib']:.0f}"
        body.append([one["kind"], f"{one['images']:,}", *rates, *shares, memory, again, where(one)])
    sides = ("decoder, a second", "import, a second", "of the decoder", "of its quickest plug-in", "of a plain script")
    head = ("files", "pictures", *sides, "MiB, a tenth / all", "killed and resumed", "where")
    return rows(head, body)


def efficiency() -> str:
    """What a label is worth: stage 1 on a share of the labels, against a little of them and the loop."""
    body = []
    for one in read("efficiency-*.json"):
        for name, arm in one["arms"].items():
            looped = name == "9 % and the loop"
            if name.startswith("9 %, "):
                continue  # Where the loop starts from: a row of its own would be read as one of the others.
            cells = [f"**{name}**" if looped else f"stage 1 on {name}"]
            for metric in ("open_exact_match", "closed_accuracy"):
                cells.append("{:.1f} [{:.1f}, {:.1f}]".format(*arm[metric]["score"]))
                cells.append("" if looped else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*arm[metric]["loop_minus_this"]))
            body.append(cells)
    gain = "the loop's gain over it"
    return rows(("", "open exact match", gain, "closed accuracy", gain), body)


def real() -> str:
    """Self-training on real images: every arm beside the loop, whose own rows stand once for every set of seeds."""
    groups = []
    told: set[tuple[str, str]] = set()
    for one in read("real-*.json"):
        seeds = f"seed{'s' if len(one['seeds']) > 1 else ''} {', '.join(map(str, one['seeds']))}"
        drawn = f"; labelled images drawn anew ({one['resplit']})" if one["resplit"] is not None else ""
        runs = ", ".join(commit[:7] for commit in one.get("commits", ()))
        body = []
        for name, arm in one["arms"].items():
            drawing = (name, f"{one['data']} {one['resplit']} {one['seeds']} {runs}")
            if drawing in told:
                continue
            if "loop" in name:
                told.add(drawing)
            cells = [f"**{name}**" if name == "loop" else name]
            for metric in ("open_exact_match", "closed_accuracy"):
                cells.append("{:.1f} [{:.1f}, {:.1f}]".format(*arm[metric]["score"]))
                gap = arm[metric].get("loop_minus_this")
                cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*gap) if gap and name != "loop" else "")
            shown = [arm[metric] for metric in ("open_exact_match", "closed_accuracy")]
            blind = [f"{cell['blind']:.0f}" for cell in shown if "blind" in cell]
            spent = [seconds for task, seconds in one["seconds"].items() if task.partition(" ")[2] == name]
            minutes = f"{sum(spent) / len(spent) / 60:.0f}" if spent else ""
            body.append([*cells, " / ".join(blind), minutes])
        made = f"; runs of {runs}" if runs else ""
        groups.append((f"{one['data']}, {seeds}{drawn}; {where(one)}{made}", body))
    gain = "the loop's gain over it"
    head = ("", "open exact match", gain, "closed accuracy", gain, "black images, open / closed", "minutes")
    return captioned(head, groups)


def seeing() -> str:
    """VQA-RAD from a model that has learned to see, beside the same one from nothing."""
    groups = []
    for one in read("seeing-*.json"):
        body = []
        for name, arm in one["arms"].items():
            cells = []
            for metric in ("open_recall", "closed_accuracy"):
                cells.append("{:.1f} [{:.1f}, {:.1f}]".format(*arm[metric]["best"]))
                gains = "{:+.1f} [{:+.1f}, {:+.1f}]"
                cells.append(gains.format(*arm[metric]["gain"]) if name.endswith("loop") else "")
                cells.append(gains.format(*arm[metric]["seeing_minus_blind"]))
            body.append([name, *cells])
        seeds = f"seed{'s' if len(one['seeds']) > 1 else ''} {', '.join(map(str, one['seeds']))}"
        groups.append((f"{seeds}; {where(one)}", body))
    gain, beyond = "the loop's gain over stage 1", "with images minus black ones"
    return captioned(("split, model, arm", "open recall", gain, beyond, "closed accuracy", gain, beyond), groups)


def readers() -> str:
    """What readers' votes add to the last training."""
    body = []
    for one in read("readers-*.json"):
        for votes, arm in one["votes"].items():
            cells = [votes]
            for metric in ("open_exact_match", "closed_accuracy"):
                cells.append("{:.1f} [{:.1f}, {:.1f}]".format(*arm[metric]["score"]))
                cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*arm[metric]["over_no_votes"]) if votes != "0" else "")
            cells += [" / ".join(f"{count:.0f}" for count in arm[name]) for name in ("decided", "taken_out")]
            body.append([*cells, where(one)])
    more = "more than without votes"
    return rows(("votes", "open exact match", more, "closed accuracy", more, "decided by votes", "taken out", "where"), body)


def projector() -> str:
    """The prototype extractor against its published form."""
    body = []
    for one in read("projector-*.json"):
        for step in ("forward", "learn"):
            seconds, memory = one[f"{step}_seconds"], one[f"{step}_mebibytes"]
            sides = [f"{1000 * seconds[side]['median']:.0f}" for side in ("ours", "broadcast")]
            over = f"**{one[f'{step}_seconds_of_broadcast_over_ours']:.1f}×**"
            held = " / ".join(f"{memory[side]['median']:.0f}" for side in ("ours", "broadcast"))
            name = "forward" if step == "forward" else "forward and backward"
            body.append(["whole" if one["whole"] else "without the last layers", name, *sides, over, held, where(one)])
    head = ("projector", "pass", "ours, ms", "broadcast, ms", "broadcast's time over ours", "MiB, ours / broadcast", "where")
    return rows(head, body)


def why_numbers_differ() -> str:
    """The same answers and policies under other prompts and judges."""
    groups = []
    for one in read("why_numbers_differ-*.json"):
        body = []
        for name, row in one["prompts"].items():
            cells = [f"{name}: `{one['words'][name]!r}`".replace("\\n", " ⏎ ").replace("'", "")]
            for metric in ("open_exact_match", "closed_accuracy"):
                cells += _moved(row[metric])
            body.append(cells)
        body += [[f"judge, {name}", *_moved(row), "", ""] for name, row in one["judges"].items()]
        seeds = ", ".join(map(str, one["seeds"]))
        groups.append((f"{one['questions']:,} questions, seeds {seeds}; {where(one)}", body))
    moved = "difference"
    return captioned(("", "open", moved, "closed accuracy", moved), groups)


def _moved(figures: dict[str, list[float]]) -> list[str]:
    score = "{:.1f} [{:.1f}, {:.1f}]".format(*figures["score"])
    return [score, "{:+.1f} [{:+.1f}, {:+.1f}]".format(*figures["difference"]) if any(figures["difference"]) else ""]


def lmms_eval() -> str:
    """The same model on the same questions through lmms-eval."""
    body = []
    for one in read("lmms_eval-*.json"):
        for precision, arm in one["arms"].items():
            said = [f"{one['questions'] - len(arm['answers'])} of {one['questions']}"]
            said += [f"{100 * row['ours']:.2f} / {100 * row['theirs']:.2f}" for row in arm["scores"].values()]
            why = {answer["why"] for answer in arm["answers"]}
            body.append([precision, *said, "; ".join(sorted(why)) or "nothing differs", where(one)])
    metrics = [metric for one in read("lmms_eval-*.json") for metric in one["arms"]["float32"]["scores"]]
    return rows(("lmms-eval in", "answers alike", *(f"`{metric}`" for metric in metrics), "why", "where"), body)


TABLES = (
    efficiency,
    real,
    seeing,
    readers,
    why_numbers_differ,
    lmms_eval,
    dpo,
    generate,
    limit,
    scale,
    million,
    memory,
    judge,
    expert,
    intake,
    projector,
)


CAPTION = r"\*[^*\n]+\*\n\n(?=\|)"
TABLE = re.compile(rf"\A(?:\|.*\n|{CAPTION}|\n(?={CAPTION}))+")
"""Tables, each with its caption or without, up to what is written by hand."""


def written(page: str) -> str:
    """The page with every table behind its mark; a mark that is missing is an error."""
    for table in TABLES:
        mark = f"<!-- {table.__name__}: bench/table.py -->\n\n"
        if page.count(mark) != 1:
            raise SystemExit(f"{PAGE} has no mark {mark.strip()}, or several")
        before, _, behind = page.partition(mark)
        page = f"{before}{mark}{table()}\n\n{TABLE.sub('', behind).lstrip(chr(10))}"
    return page


def main() -> None:
    """Print all tables, or write them into the page."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--write", action="store_true", help="put the tables into docs/results.md")
    if words.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for table in TABLES:
        print(f"### {table.__name__}\n\n{table()}\n")


if __name__ == "__main__":
    main()
