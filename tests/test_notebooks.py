"""The notebooks run from top to bottom in an empty folder, on a CPU, without a network."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook, checked against its format."""
    notebook: nbformat.NotebookNode = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    return notebook


NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_and_shows_what_it_found(path: Path, tmp_path: Path) -> None:
    notebook = read(path)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    pages = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert pages
    assert all("<table" in page for page in pages)
    if path.stem == "loop":
        assert pages[-1].count("data:image/jpeg;base64,") >= 6


def test_progress_in_a_notebook_is_one_line_that_is_written_over_and_never_red(tmp_path: Path) -> None:
    code = (
        "from stllava.progress import Progress\n"
        "with Progress('ask', 2, unit='images') as progress:\n"
        "    progress.shown -= 9\n"
        "    progress.advance()\n"
        "    progress.advance()\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (line,) = notebook.cells[0].outputs
    assert line.output_type == "display_data"
    assert "2/2 images" in line.data["text/plain"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_names_files_that_exist(path: Path) -> None:
    notebook = read(path)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        for name in re.findall(r"\]\(([\w./]+\.ipynb)\)|(docs/\w+\.md)", cell.source):
            here, page = name
            assert (path.parent / here).is_file() if here else (path.parent.parent / page).is_file(), name


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"loop", "own_images", "evaluate"}
