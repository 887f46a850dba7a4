"""Others' training data: read in every published spelling, left out by cause, and written back so that it reads the same."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stllava.commands.flags import dispatch
from stllava.config import DpoOptions
from stllava.data.conversations import read_conversations
from stllava.data.exchange import (
    chosen_answers,
    import_conversations,
    import_preferences,
    to_llava,
    to_trl,
    write_conversations,
    write_preferences,
)
from stllava.data.exchange.columns import LAYOUTS, ColumnLayout, layout_of, preference_of
from stllava.data.exchange.incoming import Missing
from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Message, Preference, content_id
from stllava.stages.dpo import dpo
from stllava.store import read_records

Row = dict[str, object]
ASKED, BETTER, WORSE = "What is shown?", "A fracture of the wrist.", "Nothing."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, a truncated one, and a text that claims to be one."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), (9, 99, 199)).save(folder / name)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:40])
    (folder / "text.png").write_text("not an image")
    return folder


def write(path: Path, rows: list[Row]) -> Path:
    """A JSON file, or JSONL by its suffix."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def say(*texts: str, image: bool = True) -> list[Row]:
    """Turns as LLaVA writes them, a human's first."""
    turns: list[Row] = [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)]
    return [{"from": "human", "value": f"<image>\n{texts[0]}"}, *turns[1:]] if image else turns


def row(image: str, *texts: str, **more: object) -> Row:
    """A LLaVA row."""
    return {"image": image, "conversations": say(*texts), **more}


def pair(image: object = "a.png", chosen: object = BETTER, rejected: object = WORSE, **more: object) -> Row:
    """A preference row with plain columns."""
    return {"image": image, "question": ASKED, "chosen": chosen, "rejected": rejected, **more}


def _rated(helpful: str, faithful: str) -> Row:
    """What VLFeedback says of an answer."""
    return {"Helpfulness": {"Rating": helpful, "Rationale": "…"}, "Visual Faithfulness": {"Rating": faithful, "Rationale": "…"}}


SPELLINGS: dict[str, Row] = {
    "STLLaVA-Med, as its DPO training reads it": {
        "image": "a.png",
        "chosen_conversations": say(ASKED, BETTER),
        "reject_conversations": say(ASKED, WORSE),
    },
    "STLLaVA-Med, as its judge writes it": {"q": ASKED, "img": "a.png", "p": BETTER, "r": WORSE},
    "torchtune, xtuner": {
        "image": "a.png",
        "chosen_conversations": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": BETTER}],
        "rejected_conversations": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": WORSE}],
    },
    "POVID, CSR": row("a.png", ASKED, BETTER) | {"rejected_conversations": say(ASKED, WORSE)},
    "LLaVA-RLHF": {
        "image": "a.png",
        "conversations": [say(ASKED, "to be replaced")],
        "output_1": {"from": "llava", "value": WORSE},
        "output_2": {"from": "llava", "value": BETTER},
        "preference": 2,
    },
    "LLaVA with two answers": row("a.png", ASKED) | {"chosen": say(BETTER, image=False)[0], "rejected": WORSE},
    "LLaMA-Factory, OpenAI's turns": {
        "messages": [{"role": "user", "content": f"<image>{ASKED}"}],
        "chosen": {"role": "assistant", "content": BETTER},
        "rejected": {"role": "assistant", "content": WORSE},
        "images": ["a.png"],
    },
    "LLaMA-Factory, Alpaca": {
        "instruction": f"<image>{ASKED}",
        "input": "",
        "chosen": BETTER,
        "rejected": WORSE,
        "images": ["a.png"],
    },
    "ms-swift, rejected_messages": {
        "messages": [{"role": "user", "content": f"<image>{ASKED}"}, {"role": "assistant", "content": BETTER}],
        "rejected_messages": [{"role": "user", "content": f"<image>{ASKED}"}, {"role": "assistant", "content": WORSE}],
        "images": ["a.png"],
        "rejected_images": ["a.png"],
    },
    "ms-swift, rejected_response": {
        "messages": [{"role": "user", "content": f"<image>{ASKED}"}, {"role": "assistant", "content": BETTER}],
        "rejected_response": WORSE,
        "images": [{"bytes": None, "path": "a.png"}],
    },
    "ms-swift, query and response": {
        "query": ASKED,
        "response": BETTER,
        "rejected_response": WORSE,
        "history": [],
        "images": "a.png",
    },
    "VLFeedback": {
        "id": "7",
        "prompt": ASKED,
        "completions": {
            "annotations": [_rated("3", "N/A"), _rated("5", "5"), _rated("1", "1")],
            "response": ["Something.", BETTER, WORSE],
        },
        "img_path": "a.png",
    },
    "RLHF-V": {
        "ds_name": "RLHF-V",
        "image": {"bytes": "/9j/4AAQ", "path": None},
        "text": json.dumps({"question": ASKED, "chosen": BETTER, "rejected": WORSE}),
        "image_path": "a.png",
    },
    "TRL": {
        "images": ["a.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED}]}],
        "chosen": [{"role": "assistant", "content": BETTER}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": WORSE}]}],
    },
    "RLAIF-V": pair(image_path="elsewhere.png", idx="7"),
    "TRL, the prompt inside the answers": {
        "images": ["a.png"],
        "chosen": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": BETTER}],
        "rejected": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": WORSE}],
    },
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_one_pair_in_every_published_spelling_is_the_same_record(layout: ColumnLayout, root: Path) -> None:
    row = SPELLINGS[layout.name]
    assert layout_of(row, source=Path("x")) == layout
    made = preference_of(row, layout, root=root, origin="here")
    assert made == preference_of(pair(), layout_of(pair(), source=Path("x")), root=root, origin="here")
    assert (made.prompt, made.chosen, made.rejected) == ((Message(role="user", content=ASKED),), BETTER, WORSE)


def test_columns_that_no_layout_has_are_refused_with_those_found_and_those_known(root: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", [{"image": "a.png", "win": BETTER, "lose": WORSE}])
    with pytest.raises(StllavaError, match="columns image, win, lose") as refused:
        import_preferences(source, images=root, to=tmp_path / "to")
    assert all(", ".join(layout.columns) in str(refused.value) for layout in LAYOUTS)


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (pair(rejected=BETTER + " "), "same text"),
        (pair(rejected=""), "empty text"),
        (pair(rejected=None), "malformed"),
        (pair(margin=-1), "malformed"),
        (pair(margin=float("nan")), "malformed"),
        (pair(id=[1]), "malformed"),
        ({"image": "a.png", "question": ASKED, "chosen": BETTER}, "malformed"),
        (pair(rejected=say("another question", WORSE)), "different prompts"),
        (pair(rejected=[{"from": "somebody", "value": WORSE}]), "unknown speaker"),
        (pair(rejected=[{"from": "human", "value": WORSE}]), "odd order"),
        (pair(rejected=[]), "no turns"),
        (pair(rejected="\ud800"), "malformed"),
        (pair(image="\ud800.png"), "malformed"),
        (pair(id="\ud800"), "malformed"),
        (pair(image=""), "no image"),
        (pair(image="gone.png"), "image missing"),
        (pair(image="cut.png"), "image truncated"),
        (pair(image="text.png"), "image not-an-image"),
        (pair(image="../a.png"), "image outside-root"),
        (pair(), "repeated"),
        (pair(rejected_images=["b.png"]), "other rejected_images"),
        (pair(rejected_image="b.png"), "other rejected_image"),
        (pair(rejected_images=[{"bytes": "…", "path": None}]), "image inside the row"),
        (pair(rejected_tools="[{}]"), "other rejected_tools"),
        (pair(videos=["a.mp4"]), "videos"),
        (pair(tools='[{"name": "look"}]'), "tools"),
        (pair(label=False), "marked as bad"),
        (pair(image={"bytes": "…", "path": None}), "image inside the row"),
        (pair(image={"url": "a.png"}), "malformed"),
        (pair(image="https://example.org/a.png"), "image by URL"),
        (pair(rejected="<image>"), "image outside a question"),  # ms-swift issue 3888
        (pair(history=["a"]), "malformed"),
        (pair(score_chosen=3.5, score_rejected=8), "chosen scored lower"),
        (pair(score_chosen="3.5", score_rejected="8"), "chosen scored lower"),
        (pair(score_chosen=3, score_rejected=3.0), "tie"),
        (pair(score_chosen="good", score_rejected=3), "malformed"),
        (pair(question="Is it normal?", chosen=say(ASKED, BETTER), rejected=say(ASKED, WORSE)), "other prompt"),
    ],
)
def test_a_pair_that_cannot_be_learned_from_is_left_out_by_its_cause(bad: Row, cause: str, root: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [pair(), bad])
    manifest = import_preferences(source, images=root, to=tmp_path / "to")
    assert (manifest.counts_in, manifest.counts_out, manifest.dropped) == (2, 1, {cause: 1})


@pytest.mark.parametrize(
    "given",
    [
        pair(score_chosen=8.5, score_rejected=3.0),
        pair(score_chosen=None, score_rejected=float("nan")),
        pair(chosen=say(ASKED, BETTER), rejected=say(ASKED, WORSE)),  # As in HuggingFaceH4/ultrafeedback_binarized.
        pair(question=f" {ASKED}\n", chosen=say(ASKED, BETTER), rejected=say(ASKED, WORSE)),
    ],
    ids=["scored", "no scores", "prompt in the answers too", "other blanks"],
)
def test_a_pair_whose_columns_agree_is_learned(given: Row, root: Path, tmp_path: Path) -> None:
    manifest = import_preferences(write(tmp_path / "x.jsonl", [given]), images=root, to=tmp_path / "to")
    assert (manifest.counts_out, manifest.dropped) == (1, {})
    assert not any("not read" in note for note in manifest.notes)
    [made] = read_records(tmp_path / "to", "preferences", Preference)
    assert (made.prompt[0].content, made.chosen, made.rejected) == (ASKED, BETTER, WORSE)


def test_a_prompt_of_trl_that_its_answers_do_not_follow_is_counted(root: Path, tmp_path: Path) -> None:
    asked = SPELLINGS["TRL"]
    whole = {name: say(ASKED, text, image=False) for name, text in (("chosen", BETTER), ("rejected", WORSE))}
    rows = [asked, asked | {"prompt": "Is it normal?"} | whole, asked | {"prompt": ASKED, "images": ["b.png"]} | whole]
    manifest = import_preferences(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    assert (manifest.counts_out, manifest.dropped) == (2, {"other prompt": 1})


def test_a_prompt_has_the_system_message_and_history_of_its_row(root: Path) -> None:
    row = pair(system="Be brief.", history=[["Left or right?", "Left."]])
    made = preference_of(row, layout_of(row, source=Path("x")), root=root, origin="x")
    assert [(turn.role, turn.content) for turn in made.prompt] == [
        ("system", "Be brief."),
        ("user", "Left or right?"),
        ("assistant", "Left."),
        ("user", ASKED),
    ]


def test_the_margin_of_rated_answers_is_the_share_of_the_scale_between_best_and_worst(root: Path) -> None:
    row = SPELLINGS["VLFeedback"]
    listed = [{"annotations": _rated(said, said), "response": text} for said, text in (("2", WORSE), ("5", BETTER))]
    assert preference_of(row | {"completions": listed}, LAYOUTS[11], root=root, origin="x").margin == 0.75
    for completions, cause in (
        ([listed[0] | {"response": "x"}, listed[0]], "tie"),
        ([listed[0], {"annotations": None, "response": "x"}], "no rating"),
        ("none", "malformed"),
    ):
        with pytest.raises(ItemError) as refused:
            preference_of(row | {"completions": completions}, LAYOUTS[11], root=root, origin="x")
        assert refused.value.cause == cause


def test_columns_that_are_passed_over_are_named(root: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", [pair(idx=7), pair("b.png", origin="web")])
    notes = import_preferences(source, images=root, to=tmp_path / "to").notes
    assert "Columns of x.json that were not read: idx, origin." in notes


@pytest.mark.parametrize("said", [0, None, "both", 3])
def test_a_verdict_for_neither_answer_is_a_tie(said: object, root: Path, tmp_path: Path) -> None:
    rows = [SPELLINGS["LLaVA-RLHF"], SPELLINGS["LLaVA-RLHF"] | {"preference": said}]
    manifest = import_preferences(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    assert manifest.dropped == {"tie": 1}


def test_swapping_the_answers_and_the_verdict_changes_nothing(root: Path) -> None:
    one = SPELLINGS["LLaVA-RLHF"]
    other = one | {"output_1": one["output_2"], "output_2": one["output_1"], "preference": 1}
    layout = layout_of(one, source=Path("x"))
    assert preference_of(one, layout, root=root, origin="x") == preference_of(other, layout, root=root, origin="x")


def test_the_lineage_of_a_pair_names_the_file_and_row_that_judged_it(root: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "dpo.json", [pair(), pair("b.png"), pair("b.png", rejected="No idea.")])
    import_preferences(source, images=root, to=tmp_path / "to")
    made = read_records(tmp_path / "to", "preferences", Preference)
    assert [one.lineage.judgment_id for one in made] == [f"dpo.json, row {number}" for number in (1, 2, 3)]
    first, second, third = (one.lineage.question_id for one in made)
    assert second == third != first


def test_a_rows_own_id_is_kept_where_no_other_row_has_it(root: Path, tmp_path: Path) -> None:
    rows = [
        row("a.png", "x", "y", id="own"),
        row("a.png", "p", "q", id=7),
        row("b.png", "p", "q", id=7),
        row("a.png", "1", "2"),
    ]
    import_conversations(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    made = read_records(tmp_path / "to", "conversations", Conversation)
    assert made[0].id == "own"
    for one in made[1:]:
        assert one.id == content_id("conversation", list(one.images), [[turn.role, turn.content] for turn in one.messages])


def test_missing_images_are_reported_one_by_one_and_nothing_else_is_lost(root: Path, tmp_path: Path) -> None:
    rows: list[Row] = [
        row("a.png", "x", "y", id="good", domain={"chest_xray": True}),
        row("gone.jpg", "x", "y", id="bad"),
        {"id": "old", "image": "b.png", "conversatons": say("x", "y")},
        {"id": "two", "image": ["a.png", "cut.png"], "conversations": say("x", "y")},
    ]
    manifest = import_conversations(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    assert manifest.dropped == {"image missing": 1, "image truncated": 1}
    assert read_records(tmp_path / "to", "missing", Missing) == [
        Missing(id="bad", image="gone.jpg", cause="missing"),
        Missing(id="two", image="cut.png", cause="truncated"),
    ]
    learned, dropped = read_conversations(tmp_path / "to" / "conversations.jsonl")
    assert ([one.id for one in learned], dropped.total()) == (["good", "old"], 0)


def test_a_wrong_image_root_is_refused_unless_so_much_may_be_missing(root: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", [row("a.png", "x", "y"), row("gone.png", "x", "y"), row("lost.png", "x", "y")])
    with pytest.raises(StllavaError, match=r"2 of 3 rows .* 2 × image missing; gone\.png is missing; lost\.png is missing"):
        import_conversations(source, images=root, to=tmp_path / "to")
    assert import_conversations(source, images=root, to=tmp_path / "to", max_bad=0.7).counts_out == 1
    with pytest.raises(StllavaError, match="3 of 3 rows"):
        import_conversations(source, images=tmp_path, to=tmp_path / "none", max_bad=1.0)


def test_a_share_that_is_none_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", [row("a.png", "x", "y")])
    with pytest.raises(StllavaError, match=r"max_bad is 1\.5"):
        import_conversations(source, images=root, to=tmp_path / "to", max_bad=1.5)


def test_images_that_have_come_since_are_another_import(root: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", [row("a.png", "x", "y"), row("late.png", "x", "y")])
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes((root / "a.png").read_bytes())
    first = import_conversations(source, images=images, to=tmp_path / "to")
    assert import_conversations(source, images=images, to=tmp_path / "to") == first
    (images / "late.png").write_bytes((root / "a.png").read_bytes())
    with pytest.raises(StllavaError, match="its input missing has changed"):
        import_conversations(source, images=images, to=tmp_path / "to")
    assert import_conversations(source, images=images, to=tmp_path / "to", existing="replace").counts_out == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [('{"a": 1}\n{"b"\n', "row 2"), ("[1]", "row 1: it is a int"), ("[]", "no rows"), ("[{", "line 1")],
    ids=["broken line", "no object", "empty", "broken list"],
)
def test_a_file_that_is_no_table_is_refused_where_it_breaks(text: str, fault: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(StllavaError, match=fault):
        import_preferences(tmp_path / "x.jsonl", images=root, to=tmp_path / "to")


def test_llava_json_comes_back_turn_by_turn(root: Path, tmp_path: Path) -> None:
    rows: list[Row] = [
        row("a.png", "x", "y", "and?", "z", id="1"),
        {
            "id": "2",
            "image": ["a.png", "b.png"],
            "conversations": [dict(say("x")[0], value="<image>\n<image>\nx"), say("", "y")[1]],
        },
        {"id": "3", "image": "b.png", "conversations": [{"from": "system", "value": "Be brief."}, *say("x", "y")]},
        {"id": "4", "image": "b.png", "conversations": [*say("x", "y"), {"from": "vuser", "value": "?"}, say("", "!")[1]]},
    ]
    import_conversations(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    records = read_records(tmp_path / "to", "conversations", Conversation)
    assert to_llava(records, to=tmp_path / "back.json") == 4
    assert json.loads((tmp_path / "back.json").read_text()) == rows


def test_places_in_a_text_and_rows_of_text_alone_come_back_from_llava_and_trl(root: Path, tmp_path: Path) -> None:
    placed = dict(say("x")[0], value="Is <image> older\nthan <image>?")
    later = dict(say("x")[0], value="And <image>, <image>?")
    rows: list[Row] = [
        {"id": "1", "image": ["a.png", "b.png"], "conversations": [placed, say("", "yes")[1]]},
        {"id": "2", "conversations": say("One and one?", "Two.", image=False)},
        {"id": "3", "image": ["a.png", "b.png"], "conversations": [*say("x", "y", image=False), later, say("", "no")[1]]},
    ]
    import_conversations(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    to_llava(read_records(tmp_path / "to", "conversations", Conversation), to=tmp_path / "back.json")
    assert json.loads((tmp_path / "back.json").read_text()) == rows
    pairs = [{"images": row["image"], "prompt": row["conversations"], "chosen": BETTER, "rejected": WORSE} for row in rows[::2]]
    import_preferences(write(tmp_path / "p.json", pairs), images=root, to=tmp_path / "once")
    once = read_records(tmp_path / "once", "preferences", Preference)
    assert [[turn.image_offsets for turn in one.prompt] for one in once] == [[(3, 15)], [(), (), (4, 6)]]
    to_trl(tmp_path / "once", to=tmp_path / "trl.jsonl", images=root)
    import_preferences(tmp_path / "trl.jsonl", images=root, to=tmp_path / "twice")
    twice = read_records(tmp_path / "twice", "preferences", Preference)
    assert [one.prompt for one in twice] == [one.prompt for one in once]


TEXT = st.text(min_size=1, max_size=20).map(str.strip).filter(lambda text: text and "<image>" not in text)


@settings(max_examples=15)
@given(turns=st.lists(TEXT, min_size=2, max_size=6, unique=True), margin=st.floats(0.01, 10))
def test_pairs_come_back_from_trls_columns_the_same(
    turns: list[str], margin: float, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("trl")
    *asked, chosen, rejected = turns if len(turns) % 2 else [ASKED, *turns]
    rows = [{"images": ["a.png", "b.png"], "prompt": say(*asked), "chosen": chosen, "rejected": rejected, "margin": margin}]
    import_preferences(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "once")
    (once,) = read_records(tmp_path / "once", "preferences", Preference)
    assert len(once.prompt) == len(asked)
    to_trl(tmp_path / "once", to=tmp_path / "trl.jsonl", images=root)
    import_preferences(tmp_path / "trl.jsonl", images=root, to=tmp_path / "twice")
    (twice,) = read_records(tmp_path / "twice", "preferences", Preference)
    assert twice == once.model_copy(update={"lineage": twice.lineage})
    assert (twice.lineage.question_id, twice.margin) == (once.lineage.question_id, margin)


@pytest.mark.parametrize("form", ["ms-swift", "llama-factory"])
def test_pairs_and_conversations_come_back_from_trainers_columns_the_same(
    form: Literal["ms-swift", "llama-factory"], root: Path, tmp_path: Path
) -> None:
    placed = dict(say("x")[0], value="Is <image> older\nthan <image>?")
    rows: list[Row] = [
        {"id": "1", "image": ["a.png", "b.png"], "conversations": [placed, *say("", "yes", "and?", "no")[1:]]},
        {"id": "2", "image": "b.png", "conversations": [{"from": "system", "value": "Be brief."}, *say("x", "y")]},
    ]
    import_conversations(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "talks")
    talks = read_records(tmp_path / "talks", "conversations", Conversation)
    assert write_conversations(talks, to=tmp_path / "talks.jsonl", form=form, images=root) == 2
    read, dropped = read_conversations(tmp_path / "talks.jsonl", root=root)
    assert dict(dropped) == {}
    assert [one.model_copy(update={"id": other.id}) for one, other in zip(read, talks, strict=True)] == talks
    pairs = [{"images": one["image"], "prompt": one["conversations"], "chosen": BETTER, "rejected": WORSE} for one in rows]
    import_preferences(write(tmp_path / "p.json", pairs), images=root, to=tmp_path / "once")
    write_preferences(tmp_path / "once", to=tmp_path / "pairs.jsonl", form=form, images=root)
    import_preferences(tmp_path / "pairs.jsonl", images=root, to=tmp_path / "twice")
    once, twice = (read_records(tmp_path / name, "preferences", Preference) for name in ("once", "twice"))
    assert [one.model_copy(update={"lineage": two.lineage}) for one, two in zip(once, twice, strict=True)] == twice


def test_every_answer_comes_back_from_verls_columns(root: Path, tmp_path: Path) -> None:
    rows: list[Row] = [row("a.png", "x", "y", "and?", "z", id="1"), row("b.png", "q", "a", id="2")]
    import_conversations(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "talks")
    talks = read_records(tmp_path / "talks", "conversations", Conversation)
    assert write_conversations(talks, to=tmp_path / "rl.jsonl", form="verl", images=root) == 3
    first = json.loads((tmp_path / "rl.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == [{"role": "user", "content": "<image>\nx"}]
    assert first["reward_model"] == {"style": "rule", "ground_truth": "y"}
    read, dropped = read_conversations(tmp_path / "rl.jsonl", root=root)
    assert not dropped
    said = [[(turn.role, turn.content) for turn in one.messages] for one in read]
    whole = [("user", "x"), ("assistant", "y"), ("user", "and?"), ("assistant", "z")]
    assert said == [whole[:2], whole, [("user", "q"), ("assistant", "a")]]
    assert [one.images for one in read] == [("a.png",), ("a.png",), ("b.png",)]


def test_llama_factory_is_told_the_columns(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "x.json", [row("a.png", "x", "y")])
    dispatch(["convert", "conversations", str(source), "--to", str(tmp_path / "sft.jsonl"), "--format", "llama-factory"])
    told = capsys.readouterr().out.split("dataset_info.json: ")[1]
    entry = json.loads(told)["sft"]
    assert {*entry["columns"].values()} <= {*json.loads((tmp_path / "sft.jsonl").read_text())}


def test_what_is_chosen_can_be_learned_as_conversations(root: Path, tmp_path: Path) -> None:
    rows = [pair(), pair(rejected="No idea."), pair("b.png", chosen=WORSE, rejected=BETTER)]
    import_preferences(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    to_llava(chosen_answers(tmp_path / "to"), to=tmp_path / "back.json")
    read, dropped = read_conversations(tmp_path / "back.json")
    assert not dropped
    assert [(one.images, one.messages[-1].content) for one in read] == [(("a.png",), BETTER), (("b.png",), WORSE)]


def test_trl_trains_on_the_file_as_it_is(tiny_model: Path, root: Path, tmp_path: Path) -> None:
    datasets, trl, transformers = (import_module(name) for name in ("datasets", "trl", "transformers"))
    longer = {"prompt": say(ASKED, "The wrist.", "Is it broken?"), "images": ["b.png"], "chosen": "Yes.", "rejected": "No."}
    rows = [SPELLINGS["TRL"], longer]
    import_preferences(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "to")
    to_trl(tmp_path / "to", to=tmp_path / "pairs.jsonl", images=root)
    loaded = datasets.load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path))
    data = loaded.cast_column("images", datasets.List(datasets.Image()))
    processor = transformers.AutoProcessor.from_pretrained(tiny_model)
    trainer = trl.DPOTrainer(
        model=transformers.AutoModelForImageTextToText.from_pretrained(tiny_model),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=2,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            max_length=None,
            report_to=[],
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        processing_class=processor,
    )
    (batch,) = trainer.get_train_dataloader()
    tokens = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    said = [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    assert set(zip(said[:2], said[2:], strict=True)) == {(BETTER, WORSE), ("Yes.", "No.")}
    assert len(batch["pixel_values"]) == 4


def test_dpo_learns_from_an_imported_folder(tiny_model: Path, root: Path, tmp_path: Path) -> None:
    rows = [SPELLINGS["TRL"], {"prompt": say("x", "y", "z"), "images": ["b.png"], "chosen": "Yes.", "rejected": "No."}]
    import_preferences(write(tmp_path / "x.json", rows), images=root, to=tmp_path / "pairs")
    manifest = dpo(
        DpoOptions(replay=0, epochs=1), policy=tiny_model, preferences=tmp_path / "pairs", images=root, to=tmp_path / "policy"
    ).manifest
    assert (manifest.counts_in, manifest.counts_out) == (2, 2)


def test_the_commands_bring_in_and_out_and_say_what_was_left(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "x.json", [pair(), pair("gone.png")])
    dispatch(["import", "preferences", str(source), "--images", str(root), "--to", str(tmp_path / "pairs")])
    said = capsys.readouterr().out
    assert "2 in, 1 out" in said
    assert "Columns as in RLAIF-V." in said
    assert "1 image missing" in said
    assert str(tmp_path / "pairs" / "missing.jsonl") in said
    out = tmp_path / "back.json"
    dispatch(["convert", "preferences", str(tmp_path / "pairs"), "--to", str(out), "--format", "llava"])
    with pytest.raises(StllavaError, match="is there already"):
        dispatch(["convert", "preferences", str(tmp_path / "pairs"), "--to", str(out), "--format", "trl"])
    dispatch(["import", "conversations", str(out), "--images", str(root), "--to", str(tmp_path / "labels")])
    labels = tmp_path / "labels" / "conversations.jsonl"
    dispatch(["convert", "conversations", str(labels), "--to", str(tmp_path / "again.json")])
    assert (tmp_path / "again.json").read_text() == out.read_text()


@pytest.mark.parametrize("verb", ["import", "convert"])
def test_a_command_without_its_noun_names_the_nouns(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StllavaError, match=r"conversations\|preferences"):
        dispatch([verb, "pictures"])
    with pytest.raises(SystemExit) as left:
        dispatch([verb, "--help"])
    assert left.value.code == 0
    assert "preferences " in capsys.readouterr().out


def test_bringing_data_in_and_out_loads_no_torch() -> None:
    code = "import sys; import stllava.data.exchange, stllava.commands.converting; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
