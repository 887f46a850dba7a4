"""What each subcommand does, one file a family of commands."""

from collections.abc import Callable

from stllava.commands.composing import compose_command
from stllava.commands.converting import convert_command
from stllava.commands.flags import stage
from stllava.commands.importing import import_command
from stllava.commands.judging import judge_command
from stllava.commands.measuring import compare_command, evaluate_command, report_command
from stllava.commands.running import demo_command, run_command
from stllava.commands.talking import chat_command, export_command, predict_command
from stllava.stages.answer import answer
from stllava.stages.ask import ask
from stllava.stages.dpo import dpo
from stllava.stages.pair import pair
from stllava.stages.sft import sft

RUNNERS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo_command,
    "run": run_command,
    "report": report_command,
    "chat": chat_command,
    "predict": predict_command,
    "export": export_command,
    "compose": compose_command,
    "convert": convert_command,
    "import": import_command,
    "compare": compare_command,
    "judge": judge_command,
    "evaluate": evaluate_command,
    **{function.__name__: stage(function) for function in (sft, ask, answer, pair, dpo)},
}
