"""The commands in one table: a command is a function, its signature the flags, and its docstring their help.

The table names functions instead of importing them, so that `stllava --help` is quick and a command loads only what it
needs. tyro's own subcommands would build the parsers of all commands for every call, and import torch's users with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """One command."""

    function: str
    """The function it calls, as module:name."""
    summary: str
    """What it does, in a sentence of `stllava --help`."""
    trains: bool = False
    """Whether several processes can be launched to do it together."""
    takes_recipe: bool = False
    """Whether its first word is a recipe, whose values are the defaults of its flags."""

    def load(self) -> Callable[..., object]:
        """The function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., object] = getattr(import_module(module), name)
        return function


@dataclass(frozen=True)
class Group:
    """Several commands behind one verb: `stllava import images`."""

    members: Mapping[str, Command]
    """By their second word."""
    summary: str
    """What they have in common, in a sentence of `stllava --help`."""


_STAGES, _HERE = "stllava.stages", "stllava.commands"
COMMANDS: Mapping[str, Command | Group] = {
    "demo": Command(f"{_HERE}.running:demo", "Run the whole loop on synthetic phantoms and print its table."),
    "run": Command(f"{_HERE}.running:run_recipe", "Run the whole loop of a recipe.", takes_recipe=True),
    "sft": Command(f"{_STAGES}.sft:sft", "Stage 1: tune a model on conversations, teaching it to ask as well.", trains=True),
    "ask": Command(f"{_STAGES}.ask:ask", "Let a policy ask questions about images."),
    "answer": Command(f"{_STAGES}.answer:answer", "Let a policy answer questions, several times each."),
    "judge": Command(f"{_HERE}.judging:judge_or_look", "Let an expert score the answers."),
    "review": Command(f"{_HERE}.reviewing:review", "Open a page on which people vote on what the expert judged."),
    "watch": Command(f"{_HERE}.reviewing:watch", "Open a page that shows a run at work."),
    "judge-check": Command(f"{_HERE}.reviewing:judge_check", "Say what people's votes say of the expert."),
    "image-gain": Command(f"{_STAGES}.image_gain:image_gain", "Measure how much likelier answers are with their image."),
    "pair": Command(f"{_STAGES}.pair:pair", "Turn verdicts into preferences: the best answer against the worst."),
    "dpo": Command(f"{_STAGES}.dpo:dpo", "Stage 2: teach a policy the preferences.", trains=True),
    "distill": Command(f"{_STAGES}.distill:distill", "Make a judge of your own of an expert's verdicts."),
    "evaluate": Command(f"{_HERE}.measuring:evaluate_or_rescore", "Score a policy on a benchmark, or rescore its answers."),
    "gather": Command(f"{_HERE}.running:gather", "Make the whole of a stage that was cut into shards."),
    "score": Command(f"{_HERE}.measuring:score_answers", "Score answers that were given elsewhere: by lmms-eval, say."),
    "compare": Command(f"{_HERE}.measuring:compare", "Compare runs with each other and with published numbers."),
    "import": Group(
        {
            "images": Command(f"{_HERE}.importing:images", "Turn a folder of medical images into a set without identities."),
            "benchmark": Command(f"{_HERE}.importing:benchmark", "Read a published benchmark, or your own file, into samples."),
            "conversations": Command(f"{_HERE}.importing:conversations", "Read instruction data of others for sft."),
            "preferences": Command(f"{_HERE}.importing:preferences", "Read preference data of others for dpo."),
            "votes": Command(f"{_HERE}.importing:votes", "Read what people said of verdicts in Label Studio."),
            "model": Command(f"{_HERE}.importing:model", "Convert an old LLaVA checkpoint to a transformers folder."),
        },
        "Read images, benchmarks, conversations, preferences or checkpoints made elsewhere.",
    ),
    "convert": Group(
        {
            "conversations": Command(
                f"{_HERE}.converting:conversations",
                "Write conversations as LLaVA JSON, or for trainers.",
            ),
            "preferences": Command(f"{_HERE}.converting:preferences", "Write preferences for trainers, or as LLaVA JSON."),
            "dataset": Command(f"{_HERE}.converting:dataset", "Write a run's preferences as a data set for the hub."),
            "review": Command(f"{_HERE}.converting:review", "Write verdicts as tasks for Label Studio."),
            "benchmarks": Command(f"{_HERE}.converting:benchmarks", "Write benchmarks as tasks for lmms-eval, by our rules."),
        },
        "Write data for TRL, ms-swift, LLaMA-Factory or verl, as LLaVA JSON, or for lmms-eval.",
    ),
    "compose": Command(f"{_HERE}.composing:compose", "Build a LLaVA from a vision tower and a language model."),
    "export": Command(f"{_HERE}.talking:export", "Write a policy as a plain transformers folder with a model card."),
    "status": Command(
        f"{_HERE}.running:status", "Say how far a run is: done, at work or stopped, stage by stage; or a stage in shards."
    ),
    "track": Command(f"{_HERE}.measuring:track", "Send the figures of a run to trackio, W&B, TensorBoard or MLflow."),
    "report": Command(f"{_HERE}.measuring:report", "Write a run's report.html and summary.json again."),
    "chat": Command(f"{_HERE}.talking:chat", "Talk with a policy about an image."),
    "predict": Command(f"{_STAGES}.predict:predict", "Answer a file of questions."),
    "doctor": Command(f"{_HERE}.doctor:doctor", "Show what is installed, the device, and how much memory a training takes."),
    "completion": Command(f"{_HERE}.installed:completion", "Print a script by which your shell completes commands and flags."),
}


def every_command() -> dict[str, Command]:
    """Every command by all of its words, such as `import images`."""
    found: dict[str, Command] = {}
    for name, entry in COMMANDS.items():
        if isinstance(entry, Group):
            found |= {f"{name} {member}": command for member, command in entry.members.items()}
        else:
            found[name] = entry
    return found
