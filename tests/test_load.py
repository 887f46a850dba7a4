"""What is read of a model's folder: no Python of its own, no weight that is made up, and a sentence for what is wrong."""

import ast
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from families import FAMILIES
from stllava.config import RECIPES, ComposeOptions
from stllava.errors import StllavaError
from stllava.model.load import load_policy
from stllava.model.parts import read_language, read_tower
from stllava.model.processor import read_processor

CODE = "open({mark!r}, 'w').close()\nfrom transformers import LlamaConfig as Own\n"
"""Says that it ran; transformers runs a copy of it, so the place is written out."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny LLaVA."""
    folder = tmp_path_factory.mktemp("whole") / "llava"
    FAMILIES["llava"]().save(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    to = tmp_path / "llava"
    to.mkdir()
    for file in whole.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def change(file: Path, **values: object) -> None:
    """Set keys of a JSON object."""
    said = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**said, **values}))


def strange_config(folder: Path) -> None:
    change(folder / "config.json", model_type="phi4mm", auto_map={"AutoConfig": "own.Own"})


def strange_model(folder: Path) -> None:
    change(folder / "config.json", model_type="llama", auto_map={"AutoModelForImageTextToText": "own.Own"})


def strange_text(folder: Path) -> None:
    # transformers asks for a part of a model whatever it was told for the whole.
    text = {"model_type": "trocr", "auto_map": {"AutoModel": "own.Own"}}
    change(folder / "config.json", text_config=text)


def strange_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})


def strange_processor(folder: Path) -> None:
    change(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})


def strange_pictures(folder: Path) -> None:
    pictures = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    change(folder / "processor_config.json", image_processor=pictures)


STRANGE = (strange_config, strange_model, strange_text, strange_tokenizer, strange_processor, strange_pictures)


@pytest.fixture
def ran(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is there when the folder's own Python was run; whoever is asked whether it may answers yes."""
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda question="": "y")
    return mark


@pytest.mark.parametrize("upstream", ["", "someone/else--"], ids=["own code", "code of another repository"])
@pytest.mark.parametrize("change_folder", STRANGE, ids=lambda change_folder: change_folder.__name__)
def test_python_that_comes_with_a_model_is_never_run_whatever_is_answered(
    folder: Path, ran: Path, change_folder: Callable[[Path], None], upstream: str
) -> None:
    change_folder(folder)
    for file in folder.glob("*.json"):
        file.write_text(file.read_text().replace('"own.Own"', f'"{upstream}own.Own"'))
    refused = pytest.raises(StllavaError, match=r"needs Python code that comes with it .* never run here; expected .* -hf")
    # This tokenizer is read from tokenizer.json by a class of transformers, as most are that name one of their own.
    with nullcontext() if change_folder is strange_tokenizer else refused:
        load_policy(folder)
    assert not ran.exists()


def test_nor_is_that_of_what_a_llava_is_composed_of_or_of_a_processor_alone(folder: Path, ran: Path) -> None:
    strange_config(folder)
    options = ComposeOptions(vision=str(folder), language=str(folder))
    for read in (lambda: read_processor(folder), lambda: read_tower(options), lambda: read_language(options.language)):
        with pytest.raises(StllavaError, match="needs Python code that comes with it"):
            read()
    assert not ran.exists()


def test_every_load_of_a_model_says_that_its_python_is_not_to_be_run() -> None:
    source = RECIPES.parent
    calls = [
        (path, node)
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    ]
    assert calls
    for path, call in calls:
        words = {word.arg: word.value for word in call.keywords}
        assert ast.dump(words.get("trust_remote_code", ast.Constant(None))) == ast.dump(ast.Constant(False)), (
            f"{path}:{call.lineno}"
        )
