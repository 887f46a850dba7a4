"""Reading and importing benchmarks: every fixture is made here, in the format of the published files."""

import csv
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from stllava.data.benchmarks import NAMES, Benchmark, import_benchmark, published, read_benchmark
from stllava.data.benchmarks.published import Published, content_hash
from stllava.data.benchmarks.rows import Row, chosen, samples_of
from stllava.data.benchmarks.slake import Language
from stllava.errors import StllavaError
from stllava.records import Sample
from stllava.store import read_jsonl, read_manifest

Table = dict[str, object]


def encoded(seed: int, form: str = "PNG") -> bytes:
    """A small image file like no other."""
    data = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(data, form)
    return data.getvalue()


def written(path: Path, content: object) -> Path:
    """The path, after bytes, text or JSON is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()
    path.write_bytes(content)
    return path


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """The path, after a CSV file is there."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return written(path, text.getvalue())


def parquet(path: Path, rows: list[Table]) -> None:
    """A parquet file as the hub keeps data sets with images."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def packed(seed: int, question: str, answer: str) -> Table:
    """A row of such a file."""
    return {"image": {"bytes": encoded(seed), "path": None}, "question": question, "answer": answer}


# --- One folder in the format of every benchmark ----------------------------------------------------------------------


def rad_rows() -> list[Table]:
    """Five rows of the public file; two are of the test split."""
    phrases = ("freeform", "para", "freeform", "test_freeform", "test_para")
    asked: list[tuple[str, str | int, str]] = [
        ("Where?", "left", "OPEN"),
        ("How many?", 2, "OPEN"),
        ("Is it?", "Yes", "CLOSED "),
    ]
    asked += [("CT or MR?", "CT", "CLOSED"), ("What?", " a cyst", "OPEN")]
    return [
        {
            "qid": str(number),
            "phrase_type": phrase,
            "image_name": f"s{number % 2}.jpg",
            "image_organ": "HEAD",
            "question": question,
            "question_type": "Pos",
            "answer": answer,
            "answer_type": kind,
            "evaluation": "evaluated",
        }
        for number, (phrase, (question, answer, kind)) in enumerate(zip(phrases, asked, strict=True))
    ]


def rad_public(folder: Path) -> None:
    written(folder / "VQA_RAD Dataset Public.json", rad_rows())
    for number in range(2):
        written(folder / "VQA_RAD Image Folder" / f"s{number}.jpg", encoded(number, "JPEG"))


def rad_split(folder: Path) -> None:
    rows = rad_rows()
    plain = [row | {"phrase_type": str(row["phrase_type"]).removeprefix("test_")} for row in rows]
    written(folder / "train.json", plain[:3])
    written(folder / "test.json", plain[3:])
    for number in range(2):
        written(folder / "images" / f"s{number}.jpg", encoded(number, "JPEG"))


def slake(folder: Path) -> None:
    def row(qid: int, question: str, answer: str, kind: str, language: str) -> Table:
        more = {
            "location": "Lung",
            "modality": "CT",
            "base_type": "vqa",
            "content_type": "Organ",
            "triple": ["vhead", "_", "_"],
        }
        return more | {
            "img_id": 7,
            "img_name": f"xmlab{qid % 2}/source.jpg",
            "question": question,
            "answer": answer,
            "q_lang": language,
            "answer_type": kind,
            "qid": qid,
        }

    written(folder / "train.json", [row(1, "Which organ?", "Lung", "OPEN", "en"), row(2, "器官?", "肺", "OPEN", "zh")])
    written(folder / "validate.json", [row(3, "Healthy?", "No", "CLOSED", "en")])
    written(folder / "test.json", [row(4, "Which plane?", "Axial", "OPEN", "en"), row(5, "健康吗?", "是", "CLOSED", "zh")])
    for number in range(2):
        written(folder / "imgs" / f"xmlab{number}" / "source.jpg", encoded(number, "JPEG"))


def pathvqa(folder: Path) -> None:
    for split in ("train", "val", "test"):
        rows = [(0, "what is present?", "a gland"), (1, "is it red?", "No"), (0, "what is present?", "a gland")]
        listed = [{"image": f"{split}_{image:04}", "question": question, "answer": answer} for image, question, answer in rows]
        written(folder / "qas" / split / f"{split}_qa.pkl", pickle.dumps(listed))
        for image in range(2):
            written(folder / "images" / split / f"{split}_{image:04}.jpg", encoded(image, "JPEG"))


def pmc_vqa(folder: Path) -> None:
    choices = [f"Choice {letter}" for letter in "ABCD"]
    header = ["Figure_path", "Question", "Answer", *choices, "Answer_label"]
    rows = [
        ["p0.jpg", "Which dye?", "blue", " A:red ", " B:blue", "C: green", "D:B:lue", "B"],
        ["p1.jpg", "Where?", "apex", "A:base", "B:apex", "C:", "D:rim", ""],
    ]
    table(folder / "test_clean.csv", header, rows)
    second = ["index", "Figure_path", "Caption", "Question", *choices, "Answer", "split"]
    table(folder / "test_2.csv", second, [["0", "p0.jpg", "Two, of it", "Which?", "x", "", "y", "z", "C", "test"]])
    for number in range(2):
        for images in ("images", "figures"):
            written(folder / images / f"p{number}.jpg", encoded(number, "JPEG"))


def omnimedvqa(folder: Path) -> None:
    one: Table = {
        "dataset": "Made",
        "question_id": "Made_0",
        "question_type": "Modality Recognition",
        "question": "Which modality?",
        "gt_answer": "CT.",
        "image_path": "Images/Made/a.png",
        "option_A": "MR",
        "option_B": "CT",
        "modality_type": "CT(Computed Tomography)",
    }
    two = {key: value for key, value in one.items() if key != "modality_type"}
    two |= {"question_id": "Made_1", "modality": "MR", "option_C": "X-ray", "option_D": None, "gt_answer": "C"}
    written(folder / "QA_information" / "Open-access" / "Made.json", [one, two])
    written(folder / "QA_information" / "Restricted-access" / "Far.json", [one | {"image_path": "Far/gone.png"}])
    written(folder / "Images" / "Made" / "a.png", encoded(0))


def hub(folder: Path) -> None:
    parquet(folder / "data" / "train-00000-of-00001.parquet", [packed(0, "where?", "left"), packed(1, "is it?", "yes")])
    parquet(folder / "data" / "test-00000-of-00002.parquet", [packed(0, "what?", "a cyst")])
    parquet(folder / "data" / "test-00001-of-00002.parquet", [packed(2, "is it so?", "No")])


FORMS: dict[str, tuple[str, Callable[[Path], None], dict[str, tuple[int, int]]]] = {
    "rad split": ("vqa-rad", rad_split, {"train": (2, 1), "test": (1, 1)}),
    "rad public": ("vqa-rad", rad_public, {"train": (2, 1), "test": (1, 1)}),
    "rad hub": ("vqa-rad", hub, {"train": (1, 1), "test": (1, 1)}),
    "slake": ("slake", slake, {"train": (1, 0), "validation": (0, 1), "test": (1, 0)}),
    "pathvqa": ("pathvqa", pathvqa, {"train": (2, 1), "validation": (2, 1), "test": (2, 1)}),
    "pathvqa hub": ("pathvqa", hub, {"train": (1, 1), "test": (1, 1)}),
    "pmc": ("pmc-vqa", pmc_vqa, {"test_clean": (0, 2), "test_2": (0, 1)}),
    "omni": ("omnimedvqa", omnimedvqa, {"open-access": (0, 2)}),
}
"""By form: the benchmark, what makes its folder, and open and closed questions by split."""


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, tuple[int, int]]]:
    """A benchmark's name, a folder in one of its forms, and its counts."""
    name, make, counts = FORMS[request.param]
    make(tmp_path / "source")
    return name, tmp_path / "source", counts


def counts_of(benchmark: Benchmark) -> dict[str, tuple[int, int]]:
    """Open and closed questions by split."""
    kinds = {split: [row.kind for row in rows] for split, rows in benchmark.splits.items()}
    return {split: (some.count("open"), some.count("closed")) for split, some in kinds.items()}


def changed(name: str, folder: Path) -> Benchmark:
    """A made-up benchmark, which is never the published one."""
    return read_benchmark(name, folder, allow_changed=True)


# --- What every form has in common ------------------------------------------------------------------------------------


def test_every_form_is_read_into_samples(form: tuple[str, Path, dict[str, tuple[int, int]]]) -> None:
    name, folder, counts = form
    benchmark = changed(name, folder)
    assert name in NAMES
    assert counts_of(benchmark) == counts
    for split, rows in benchmark.splits.items():
        assert len({row.id for row in rows}) == len(rows)
        for row in rows:
            assert row.split == split
            assert set(row.targets) <= set(row.choices or row.targets)
            assert benchmark.packed or (benchmark.root / row.image).is_file()
    assert benchmark.hashes.keys() == counts.keys()
    assert not benchmark.dropped


def test_every_form_is_imported_once_and_reads_back(form: tuple[str, Path, dict[str, tuple[int, int]]], tmp_path: Path) -> None:
    name, folder, counts = form
    to = tmp_path / "made"
    benchmark = import_benchmark(name, folder, to=to, allow_changed=True)
    assert counts_of(benchmark) == counts
    for split, rows in benchmark.splits.items():
        assert tuple(read_jsonl(to / f"{name}-{split}.jsonl", Sample)) == rows
        assert all((benchmark.root / row.image).is_file() for row in rows)
    assert json.loads((to / "candidates.json").read_text()) == list(benchmark.candidates)
    manifest = read_manifest(to)
    assert manifest.stage == "import"
    assert manifest.inputs.items() >= {f"split {split}": content for split, content in benchmark.hashes.items()}.items()
    assert manifest.counts_out == sum(map(sum, counts.values()))
    assert f"Image paths are relative to {benchmark.root}." in manifest.notes
    assert import_benchmark(name, folder, to=to, allow_changed=True) == benchmark
    assert read_manifest(to) == manifest


def test_a_folder_that_is_something_else_is_refused_with_what_is_looked_for(tmp_path: Path) -> None:
    for name in NAMES:
        with pytest.raises(StllavaError, match=r"expected the .*(folder|file)"):
            read_benchmark(name, tmp_path)
    with pytest.raises(StllavaError, match="which does not exist"):
        read_benchmark("slake", tmp_path / "gone")
    with pytest.raises(StllavaError, match="'nothing'"):
        read_benchmark("nothing", tmp_path)


def test_other_input_is_not_taken_for_the_same_import(tmp_path: Path) -> None:
    rad_split(tmp_path / "rad")
    import_benchmark("vqa-rad", tmp_path / "rad", to=tmp_path / "made", allow_changed=True)
    rows = json.loads((tmp_path / "rad" / "test.json").read_text())
    written(tmp_path / "rad" / "test.json", [rows[0] | {"answer": "MR"}, *rows[1:]])
    with pytest.raises(StllavaError, match="other options or inputs: its input"):
        import_benchmark("vqa-rad", tmp_path / "rad", to=tmp_path / "made", allow_changed=True)


# --- One by one -------------------------------------------------------------------------------------------------------


def test_both_json_forms_of_vqa_rad_have_the_same_content_and_ids(tmp_path: Path) -> None:
    rad_split(tmp_path / "a")
    rad_public(tmp_path / "b")
    split, public = changed("vqa-rad", tmp_path / "a"), changed("vqa-rad", tmp_path / "b")
    assert split.hashes == public.hashes
    for name in ("train", "test"):
        assert [row.id for row in split.splits[name]] == [row.id for row in public.splits[name]]
    row = public.splits["test"][1]
    assert (row.id, row.image, row.targets) == ("vqa-rad-4", "VQA_RAD Image Folder/s0.jpg", ("a cyst",))
    assert row.labels == {"location": "HEAD", "content": "POS", "phrasing": "para"}
    assert public.candidates == ("2", "left")


def test_a_phrase_type_that_names_no_split_is_refused_by_row(tmp_path: Path) -> None:
    rows = rad_rows()
    written(tmp_path / "VQA_RAD Dataset Public.json", [*rows[:2], rows[2] | {"phrase_type": "other"}])
    with pytest.raises(StllavaError, match="row 3: phrase_type is 'other'"):
        read_benchmark("vqa-rad", tmp_path)
    written(tmp_path / "VQA_RAD Dataset Public.json", [*rows[:4], rows[4] | {"answer_type": "BOTH"}])
    with pytest.raises(StllavaError, match="row 5: answer_type is 'BOTH'"):
        read_benchmark("vqa-rad", tmp_path)


def test_the_language_of_slake_is_chosen(tmp_path: Path) -> None:
    slake(tmp_path)
    counts = {}
    for language in get_args(Language):
        benchmark = read_benchmark("slake", tmp_path, language=language, allow_changed=True, splits=("train", "test"))
        counts[language] = counts_of(benchmark)["test"]
    assert counts == {"en": (1, 0), "zh": (0, 1), "both": (1, 1)}
    row = benchmark.splits["test"][0]
    assert row.labels == {"language": "en", "modality": "CT", "content": "Organ", "location": "Lung", "base": "vqa"}
    assert (row.id, row.image) == ("slake-4", "imgs/xmlab0/source.jpg")
    assert benchmark.candidates == ("Lung", "肺")
    with pytest.raises(StllavaError, match="language is 'fr'"):
        read_benchmark("slake", tmp_path, language="fr")  # type: ignore[arg-type]


def test_repeated_questions_of_pathvqa_are_counted_and_told_apart(tmp_path: Path) -> None:
    pathvqa(tmp_path)
    rows = changed("pathvqa", tmp_path).splits["test"]
    assert rows[0].question == rows[2].question
    assert rows[0].id != rows[2].id
    assert rows[0].image == "images/test/test_0000.jpg"


class Evil:
    """Runs code when it is unpickled in the usual way."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch stolen",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps([{"image": "a", "question": Evil(), "answer": "b"}]), r"it wants to use \w+.system"),
        (pickle.dumps({"image": "a"}), "holds a dict"),
        (pickle.dumps([{"image": "a"}]), "row 1: question: Field required"),
        (pickle.dumps(["a"])[:-4], "is not read"),
        (b"\x80", "is not read"),
        (b"", "is not read"),
    ],
    ids=["code", "no list", "no key", "cut", "stub", "empty"],
)
def test_a_pickle_that_is_more_or_less_than_plain_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "qas" / "test" / "test_qa.pkl", data)
    with pytest.raises(StllavaError, match=message):
        read_benchmark("pathvqa", tmp_path)
    assert not (tmp_path / "stolen").exists()


def test_choices_of_pmc_vqa_lose_their_letter_and_name_the_right_text(tmp_path: Path) -> None:
    pmc_vqa(tmp_path)
    benchmark = changed("pmc-vqa", tmp_path)
    first, second = benchmark.splits["test_clean"]
    assert (first.choices, first.targets) == (("red", "blue", "green", "B:lue"), ("blue",))
    assert (second.choices, second.targets) == (("base", "apex", "rim"), ("apex",))
    (other,) = benchmark.splits["test_2"]
    assert (other.image, other.choices, other.targets) == ("figures/p0.jpg", ("x", "y", "z"), ("y",))


def test_omnimedvqa_takes_fewer_options_and_restricted_questions_when_named(tmp_path: Path) -> None:
    omnimedvqa(tmp_path)
    first, second = changed("omnimedvqa", tmp_path).splits["open-access"]
    assert (first.id, first.choices, first.targets) == ("omnimedvqa-Made_0", ("MR", "CT"), ("CT",))
    assert first.labels == {"modality": "CT(Computed Tomography)", "content": "Modality Recognition", "dataset": "Made"}
    assert (second.targets, second.labels["modality"]) == (("X-ray",), "MR")
    with pytest.raises(StllavaError, match=r"1 of 1 questions of the restricted-access split .* 1 × missing"):
        read_benchmark("omnimedvqa", tmp_path, splits=("restricted-access",))


@given(st.lists(st.text(st.characters(categories=("L", "N")), min_size=2), min_size=1, max_size=6, unique_by=str.casefold))
def test_a_choice_is_found_by_its_text_and_by_its_letter(choices: list[str]) -> None:
    for letter, choice in zip("ABCDEF", choices, strict=False):
        assert chosen(choices, f" {choice} ") == choice
        assert chosen(choices, letter.lower()) == choice


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["left lung", "heart"], "The Left lung.", "left lung"),
        (["Heart", "heart"], "HEART", None),
        (["+", "-"], "-", "-"),
        (["+", "no sign"], "-", None),
        (["x", "y"], "C", None),
        (["x", "y"], "", None),
        (["b", "a"], "A", "a"),
    ],
)
def test_an_answer_means_one_choice_or_none(choices: list[str], answer: str, right: str | None) -> None:
    assert chosen(choices, answer) == right


# --- Parquet and the hub ----------------------------------------------------------------------------------------------


def test_the_images_of_parquet_files_are_unpacked_once_each(tmp_path: Path) -> None:
    hub(tmp_path / "hub")
    assert changed("pathvqa", tmp_path / "hub").packed
    benchmark = import_benchmark("pathvqa", tmp_path / "hub", to=tmp_path / "made", allow_changed=True)
    assert not benchmark.packed
    assert sorted(path.read_bytes() for path in (tmp_path / "made" / "images").iterdir()) == sorted(map(encoded, range(3)))
    train, test = benchmark.splits["train"], benchmark.splits["test"]
    assert train[0].image == test[0].image
    assert any("6,719" in note for note in benchmark.notes)


def test_a_packed_image_that_cannot_be_used_is_counted(tmp_path: Path) -> None:
    rows = [packed(number, f"what {number}?", "a cyst") for number in range(40)]
    rows[3]["image"], rows[4]["image"] = {"bytes": b"", "path": None}, {"bytes": b"not an image", "path": "a.jpg"}
    parquet(tmp_path / "hub" / "test-00000-of-00001.parquet", rows)
    benchmark = import_benchmark("pathvqa", tmp_path / "hub", to=tmp_path / "made", allow_changed=True)
    assert len(benchmark.splits["test"]) == 38
    assert benchmark.dropped == {"no image": 1, "not-an-image": 1}
    assert read_manifest(tmp_path / "made").dropped == benchmark.dropped
    assert sum("cannot be used" in note for note in benchmark.notes) == 2


def test_a_parquet_file_that_is_broken_or_another_is_named(tmp_path: Path) -> None:
    written(tmp_path / "test.parquet", b"PAR1 and no more")
    with pytest.raises(StllavaError, match=r"test.parquet: .*expected a whole parquet file"):
        read_benchmark("vqa-rad", tmp_path)
    parquet(tmp_path / "test.parquet", [{"image": None, "question": "?"}])
    with pytest.raises(StllavaError, match="no column answer"):
        read_benchmark("vqa-rad", tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StllavaError, match=r"pip install 'stllava\[hub\]'"):
        read_benchmark("vqa-rad", tmp_path)


def test_the_hub_is_refused_clearly_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="hub:some/where cannot be fetched"):
        import_benchmark("vqa-rad", "hub:some/where", to=tmp_path / "made")
    with pytest.raises(StllavaError, match="cannot be fetched: HFValidationError"):
        import_benchmark("vqa-rad", "hub:a/b/c", to=tmp_path / "made")


# --- Your own file ----------------------------------------------------------------------------------------------------


def own(folder: Path, content: object, name: str = "mine.jsonl") -> Benchmark:
    """A user's file beside two images, read."""
    for number in range(2):
        written(folder / "pictures" / f"{number}.png", encoded(number))
    if isinstance(content, list):
        content = "\n".join(json.dumps(row) for row in content)
    return read_benchmark("mine", written(folder / name, content))


def test_your_own_jsonl_is_read_with_what_it_leaves_out(tmp_path: Path) -> None:
    benchmark = own(
        tmp_path,
        [
            {"image": "pictures/0.png", "question": "Where?", "answer": "left", "ward": 7},
            {"image": "pictures/0.png", "question": "Is it?", "targets": ["Yes"], "split": "dev", "id": "a"},
            {"image": "pictures/1.png", "question": "Which?", "answer": "b", "choices": ["CT", "MR"]},
            {"image": "pictures/1.png", "question": "Which?", "targets": ["one", "1"], "kind": "closed", "labels": {"x": "y"}},
        ],
    )
    where, which, many = benchmark.splits["test"]
    assert (where.kind, where.labels, where.targets) == ("open", {"ward": "7"}, ("left",))
    assert (which.kind, which.targets) == ("closed", ("MR",))
    assert (many.kind, many.targets, many.labels) == ("closed", ("one", "1"), {"x": "y"})
    (asked,) = benchmark.splits["dev"]
    assert (asked.id, asked.kind) == ("a", "closed")


def test_your_own_csv_is_read_like_the_jsonl(tmp_path: Path) -> None:
    header = "image,question,answer,targets,choices,answer_type,site\n"
    rows = 'pictures/0.png,Where?,left,,,OPEN,north\npictures/1.png,"A, or B?",,"[""x"", ""y""]",x|y|z,,\n'
    first, second = own(tmp_path, "\ufeff" + header + rows, "mine.csv").splits["test"]
    assert (first.targets, first.kind, first.choices, first.labels) == (("left",), "open", (), {"site": "north"})
    assert (second.question, second.targets, second.choices, second.kind) == ("A, or B?", ("x", "y"), ("x", "y", "z"), "closed")


def test_samples_that_were_written_are_read_again(tmp_path: Path) -> None:
    rows = [{"image": "pictures/0.png", "question": "Which?", "answer": "CT", "choices": ["CT", "MR"], "organ": "lung"}]
    once = own(tmp_path, rows).splits["test"]
    again = own(tmp_path, "".join(row.model_dump_json() + "\n" for row in once), "again.jsonl").splits["test"]
    assert again == once


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", '{"image": "a"\n', "row 1: "),
        ("m.jsonl", '{"image": "a", "question": "b", "answer": "c"}\n["a"]', "row 2: it is a list"),
        ("m.jsonl", '{"image": "a", "question": "b"}', "row 1: neither answer nor targets"),
        ("m.jsonl", '{"image": ["a"], "question": "b", "answer": "c"}', "row 1: image is a list"),
        ("m.jsonl", '{"image": "a", "question": "b", "answer": true}', "row 1: answer is a bool"),
        ("m.jsonl", '{"image": "a", "question": "b", "answer": "c", "kind": "half"}', "row 1: answer_type is 'half'"),
        ("m.jsonl", '{"id": 1, "answer": "c"}\n{"id": "1", "answer": "d"}', "row 2: id '1' is the id of row 1"),
        ("m.jsonl", "\n", "has no rows"),
        ("m.csv", "image,answer\na,b\n", "no column question"),
        ("m.csv", "image,question,answer\na,b,c,d\n", "row 1: 4 fields under 3 columns"),
        ("m.csv", b"image,question,answer\n\x81,b,c\n", "CSV file in UTF-8"),
        ("m.csv", "image,question,answer\na,как,c\n".encode("cp1251"), "CSV file in UTF-8"),
        ("m.csv", 'image,question,answer\na,"b,c\nd,e,f\n', "row 1, which begins in line 2: unexpected end of data"),
        ("m.csv", 'image,question,answer\na,b,c\nd,"e"s,f\n', "row 2, which begins in line 3: "),
        ("m.csv", "image,question,answer,answer\na,b,c,d\n", "several columns named 'answer'"),
        ("m.json", '{"data": [{"image": "a"}]}', "keys data.*list that stands under 'data'"),
    ],
)
def test_a_row_of_your_own_that_is_wrong_is_named(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(StllavaError, match=message):
        read_benchmark("mine", written(tmp_path / name, content))


def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="letters, digits"):
        read_benchmark("../mine", written(tmp_path / "m.csv", "image,question,answer\na,b,c\n"))


# --- Unusable rows ----------------------------------------------------------------------------------------------------


def test_a_few_unusable_rows_are_counted_by_cause(tmp_path: Path) -> None:
    good: list[Table] = [{"image": "pictures/0.png", "question": f"What {n}?", "answer": "x"} for n in range(96)]
    bad: list[Table] = [
        {"image": "", "question": "What?", "answer": "x"},
        {"image": "pictures/gone.png", "question": "What?", "answer": "x"},
        {"image": "pictures/0.png", "question": " ", "answer": "x"},
        {"image": "pictures/0.png", "question": "Which?", "answer": "x", "choices": ["y", "z"]},
    ]
    benchmark = own(tmp_path, good + bad)
    assert benchmark.dropped == {"no image": 1, "missing": 1, "empty text": 1, "answer is no choice": 1}
    assert len(benchmark.splits["test"]) == 96
    assert any("4 of 100 questions of the test split of mine cannot be used" in note for note in benchmark.notes)
    with pytest.raises(StllavaError, match=r"4 of 79 questions .* at most 5%"):
        own(tmp_path, good[:75] + bad)


def test_images_that_are_still_in_an_archive_are_told(tmp_path: Path) -> None:
    slake(tmp_path)
    (tmp_path / "imgs").rename(tmp_path / "elsewhere")
    written(tmp_path / "imgs.zip", b"zip")
    with pytest.raises(StllavaError, match=r"missing; .* Unpack imgs.zip there"):
        changed("slake", tmp_path)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    slake(tmp_path)
    with pytest.raises(StllavaError, match="no split extra; expected some of train, validation, test"):
        read_benchmark("slake", tmp_path, splits=("extra",))


# --- What is published ------------------------------------------------------------------------------------------------


def test_a_split_with_other_counts_is_refused_and_allowed_with_a_note(tmp_path: Path) -> None:
    slake(tmp_path)
    with pytest.raises(
        StllavaError, match=r"test split of slake .*: 1 open and 0 closed questions; expected 645 open and 416 closed"
    ):
        read_benchmark("slake", tmp_path)
    assert any("not the published one (1 open and 0 closed" in note for note in changed("slake", tmp_path).notes)
    assert read_benchmark("slake", tmp_path, splits=("train",)).splits.keys() == {"train"}


def test_equal_counts_with_other_content_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rad_split(tmp_path)
    hashes = changed("vqa-rad", tmp_path).hashes
    counts = {"train": {"open": 2, "closed": 1}, "test": {"open": 1, "closed": 1}}
    known = {split: Published(counts[split], hashes[split]) for split in counts}
    monkeypatch.setitem(published.PUBLISHED, ("vqa-rad", "json"), known)
    assert read_benchmark("vqa-rad", tmp_path).notes == (
        "vqa-rad: content and counts of train, test equal the published ones.",
    )
    rows = json.loads((tmp_path / "test.json").read_text())
    written(tmp_path / "test.json", [rows[0] | {"answer": "MR"}, *rows[1:]])
    with pytest.raises(StllavaError, match=r"test split .* the same counts, but other content"):
        read_benchmark("vqa-rad", tmp_path)


TEXT = st.text(min_size=1, max_size=5)
ROWS = st.lists(st.builds(Row, TEXT, TEXT, st.tuples(TEXT), st.sampled_from(("open", "closed"))), min_size=1, max_size=5)


@given(ROWS)
def test_the_content_hash_knows_content_and_nothing_else(rows: list[Row]) -> None:
    samples = samples_of("x", "test", rows)
    assert content_hash(samples[::-1]) == content_hash(samples)
    moved = [row.model_copy(update={"id": "other", "labels": {"a": "b"}, "question": f" {row.question}\n"}) for row in samples]
    assert content_hash(moved) == content_hash(samples)
    for update in ({"question": f"{samples[0].question} more"}, {"targets": ("more", "more")}, {"image": "more/more"}):
        assert content_hash([samples[0].model_copy(update=update), *samples[1:]]) != content_hash(samples)
    assert content_hash([*samples, samples[0]]) != content_hash(samples)


@given(ROWS)
def test_every_row_without_an_id_keeps_one_of_its_own(rows: list[Row]) -> None:
    samples = samples_of("x", "test", rows + rows)
    assert len({sample.id for sample in samples}) == 2 * len(rows)
    assert [sample.question for sample in samples] == [row.question for row in rows + rows]


def test_the_published_vqa_rad_is_known_by_content() -> None:
    folder = os.environ.get("STLLAVA_VQA_RAD")
    if not folder:
        pytest.skip("STLLAVA_VQA_RAD is not set: the pinned content of VQA-RAD is NOT tested; set it to its folder")
    benchmark = read_benchmark("vqa-rad", Path(folder))
    assert counts_of(benchmark) == {"train": (770, 1027), "test": (179, 272)}
    assert benchmark.notes == ("vqa-rad: content and counts of train, test equal the published ones.",)
    assert len(benchmark.candidates) == 430
