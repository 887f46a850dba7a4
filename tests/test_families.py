"""Every family goes the whole way: load, sft with asking, ask, answer, dpo, export, and the same logits when loaded again.

`docs/families.md` holds the table of what happened; `python tests/test_families.py --write` writes it anew.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self, cast

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import chat_template_utils

from helpers.families import FAMILIES, TITLES
from stllava.config import AnswerOptions, AskOptions, DpoOptions, GroupRates, PairOptions, SamplingOptions, SftOptions
from stllava.data.conversations import conversation
from stllava.errors import StllavaError
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.families import FAMILIES as TABLE
from stllava.model.families import PALIGEMMA
from stllava.model.groups import Groups
from stllava.model.load import Policy, Prefix, load_policy
from stllava.model.prompt import segments, virtual_role
from stllava.model.template import DAY, thinks
from stllava.records import Answers, Conversation, Lineage, Manifest, Message, Preference, Question, Role, Sampling
from stllava.stages.answer import answer
from stllava.stages.ask import ask
from stllava.stages.dpo import dpo
from stllava.stages.export import export
from stllava.stages.sft import sft
from stllava.store import Stage, read_records, to_jsonl, write_whole
from stllava.tree.forward import build_tree, collate, token_log_probabilities
from stllava.tree.guard import measure_packing

# Its processor makes arrays of tensors in the old way (transformers 5.23).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

DOCS = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- families: made by python tests/test_families.py --write -->\n", "<!-- end of families -->\n"
PICTURES = {"wide.png": (64, 48), "tall.png": (40, 64)}
QUESTIONS = ("is there a nodule?", "what organ is shown?")
SHORT = SamplingOptions(temperature=1.2, top_k=0, top_p=1.0, max_new_tokens=4)
RATES = GroupRates(language=1e-3, projector=1e-3, vision=1e-3)
TALK = (
    Message(role="user", content="Describe the image."),
    Message(role="assistant", content="a normal chest ct."),
    Message(role="virtual_user", content="is there a nodule?"),
    Message(role="assistant", content="no"),
)
built = cache(lambda name: FAMILIES[name]())


class Row(NamedTuple):
    """What happened to one family."""

    family: str
    load: str
    sft: str
    ask: str
    answer: str
    dpo: str
    float32: str
    bfloat16: str
    export: str
    reload: str


GAPS = {"float32", "bfloat16"}
"""Columns that are measured, and so not the same to the last digit everywhere."""
HEAD = Row(
    "family",
    "load",
    "sft with asking",
    "ask",
    "answer",
    "dpo",
    "gap packed, float32",
    "gap packed, bfloat16",
    "export",
    "reload gives the same logits",
)
QUICK = {"llava", "gemma3", "gemma4", "qwen3_5"}
"""One that packs, one that does not, one that can think, one that carries a state; the others' whole way is slow."""


def draw_pictures(root: Path) -> None:
    """Two small images of different shapes."""
    for name, size in PICTURES.items():
        Image.linear_gradient("L").resize(size).convert("RGB").save(root / name)


@torch.inference_mode()
def logits(policy: Policy, root: Path) -> torch.Tensor:
    """[N, V] of the model's own forward about one image."""
    pieces = segments(policy.chat, TALK, images=1)
    prefix = Prefix(pieces[0].text, ("wide.png",), root)
    ids = [*policy.encode(prefix).ids, *(token for piece in pieces[1:] for token in policy.tokens(piece.text))]
    found: torch.Tensor = policy.model(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        **policy.join([policy.encode(prefix)]),
        **policy.kinds([prefix], left=[0], width=len(ids)),
    ).logits[0]
    return found


def labels() -> list[Conversation]:
    """One conversation of two questions about each image."""
    turns = [turn.model_copy(update={"role": "user"}) if turn.role == "virtual_user" else turn for turn in TALK]
    return [conversation((name,), tuple(turns)) for name in PICTURES]


def write_questions(to: Path, policy: str) -> None:
    """A finished ask stage: what an untrained model asks is no question."""
    stage = Stage("ask", to, AskOptions(), inputs={}, existing="resume")
    how = Sampling(**SHORT.model_dump(), seed=0)
    stage.write_records(
        "questions",
        [
            Question(id=f"{name} {text}", images=(name,), text=text, description="", policy=policy, sampling=how)
            for name in PICTURES
            for text in QUESTIONS
        ],
    )
    stage.finish(counts_in=4, counts_out=4)


def write_preferences(to: Path, answers: list[Answers]) -> None:
    """A finished pair stage: the first answer is always preferred to one that says no."""
    stage = Stage("pair", to, PairOptions(), inputs={}, existing="resume")
    stage.write_records(
        "preferences",
        [
            Preference(
                id=one.id,
                images=one.images,
                prompt=(Message(role="user", content=one.question),),
                chosen=one.completions[0] or "yes",
                rejected="no, on the left",
                margin=1.0,
                lineage=Lineage(question_id=one.question_id, answers_id=one.id, judgment_id="j"),
            )
            for one in answers
        ],
    )
    stage.finish(counts_in=len(answers), counts_out=len(answers))


def packing(manifest: Manifest) -> str:
    """Whether a stage packed, and if not, why, from its notes."""
    unpacked = [note for note in manifest.notes if note.endswith("which takes longer.")]
    return f"unpacked: {unpacked[0].partition(':')[0].removeprefix('This model ')}" if unpacked else "packed"


def same(one: Policy, other: Policy, root: Path) -> bool:
    """Whether two policies have the same weights and see the same; sums over experts move by where they lie in memory."""
    weights, others = one.model.state_dict(), other.model.state_dict()
    equal = weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)
    return equal and torch.allclose(logits(one, root), logits(other, root), rtol=0, atol=1e-5)


def gap(policy: Policy, root: Path) -> str:
    """Nats a token on average between packed and unpacked, which say of themselves whether the model may be packed."""
    chains = [segments(policy.chat, (Message(role="user", content=text), TALK[1]), images=1) for text in QUESTIONS]
    tree = build_tree(policy, Prefix(chains[0][0].text, ("wide.png",), root), [chain[1:] for chain in chains])
    measured = measure_packing(policy, tree)
    assert (measured.fault is None) == (not policy.family.unpacked), (policy.model.dtype, measured)
    return "refused" if measured.refusal else f"{measured.gap:.0e}"


def went(done: bool) -> str:
    """A cell of the table."""
    return "yes" if done else "**no**"


def go(name: str, folder: Path) -> Row:
    """Take a family the whole way in an empty folder."""
    draw_pictures(folder)
    policy = FAMILIES[name]()
    policy.save(folder / "model")
    loaded = load_policy(folder / "model")
    write_whole(folder / "labels.jsonl", to_jsonl(labels()))
    shared = {"learning_rate": RATES, "batch_size": 2, "warmup": 0.0, "schedule": "constant", "save_steps": 0}
    tuned = sft(
        SftOptions.model_validate(shared | {"self_question_ratio": 1.0}),
        model=str(folder / "model"),
        conversations=folder / "labels.jsonl",
        images=folder,
        to=folder / "sft",
    ).manifest
    asking = AskOptions(questions=2, sampling=SHORT, description_sampling=SHORT)
    asked = ask(asking, policy=folder / "sft", images=folder, root=folder, to=folder / "asked").manifest
    write_questions(folder / "questions", "p")
    answered = answer(
        AnswerOptions(num_answers=2, sampling=SHORT),
        policy=folder / "sft",
        questions=folder / "questions",
        root=folder,
        to=folder / "answers",
    ).manifest
    write_preferences(folder / "pairs", read_records(folder / "answers", "answers", Answers))
    preferred = dpo(
        DpoOptions.model_validate(shared | {"self_question_ratio": 1.0, "replay_images": 2}),
        policy=folder / "sft",
        preferences=folder / "pairs",
        images=folder,
        conversations=folder / "labels.jsonl",
        to=folder / "dpo",
    ).manifest
    exported = export(folder / "dpo", to=folder / "exported").manifest
    last, again = load_policy(folder / "dpo"), load_policy(folder / "exported")
    plain = AutoModelForImageTextToText.from_pretrained(folder / "exported").eval()
    kept = same(again, last, folder) and same(Policy(plain, again.processor), last, folder)
    assert packing(tuned) == packing(preferred)
    return Row(
        f"{TITLES.get(name, policy.family.title)} (`{policy.model.config.model_type}`)",
        went(same(loaded, policy, folder)),
        f"{went(tuned.counts_out == len(PICTURES))}, as {virtual_role(loaded.chat)}",
        went(asked.counts_in == 2 * len(PICTURES) and not any(cause.startswith("image") for cause in asked.dropped)),
        went(answered.counts_out == len(PICTURES) * len(QUESTIONS)),
        packing(preferred) if preferred.counts_out == len(PICTURES) * len(QUESTIONS) else "**no**",
        gap(load_policy(folder / "model", dtype=torch.float32), folder),
        gap(load_policy(folder / "model", dtype=torch.bfloat16), folder),
        went(exported.counts_out == 1),
        went(kept and not torch.equal(logits(last, folder), logits(policy, folder))),
    )


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [HEAD, Row(*["---"] * len(HEAD)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Row]:
    """What happened to a family, found out once."""
    return cache(lambda name: go(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(name: str) -> Policy:
    made: Policy = built(name)
    made.packs = True
    return made


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES], ids=FAMILIES
)
def test_each_family_goes_the_whole_way(name: str, found: Callable[[str], Row]) -> None:
    row = found(name)
    assert "**no**" not in " ".join(row)
    assert (row.dpo == "packed") == (not built(name).family.unpacked)
    # What is packed differs by rounding alone.
    assert row.dpo != "packed" or (float(row.float32) < 1e-5 and float(row.bfloat16) < 5e-2)


@pytest.mark.parametrize(
    "name", [name if name in {"llama4", "glm4v_moe"} else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_each_family_learns_through_adapters_on_its_linear_layers(name: str, tmp_path: Path) -> None:
    draw_pictures(tmp_path)
    policy = built(name)
    policy.save(tmp_path / "model")
    write_whole(tmp_path / "labels.jsonl", to_jsonl(labels()))
    lora = {"language": {"rank": 2}, "vision": {"rank": 2}}
    shared = {"batch_size": 2, "warmup": 0.0, "schedule": "constant", "save_steps": 0, "checkpoint_activations": True}
    sft(
        SftOptions.model_validate(shared | {"lora": lora, "learning_rate": RATES, "self_question_ratio": 1.0}),
        model=str(tmp_path / "model"),
        conversations=tmp_path / "labels.jsonl",
        images=tmp_path,
        to=tmp_path / "tuned",
    )
    tuned = dict(load_policy(tmp_path / "tuned").model.named_parameters())
    moved = {weight for weight, value in policy.model.named_parameters() if not torch.equal(value, tuned[weight])}
    plain = {
        f"{path}.weight"
        for path, module in policy.model.named_modules()
        if type(module) is torch.nn.Linear and path.rpartition(".")[2] not in {"lm_head", "score"}
    }
    group_of = Groups(policy.model)
    assert {weight for weight in moved if group_of(weight) == "language"} == {
        weight for weight in plain if group_of(weight) == "language"
    }


@pytest.mark.slow
def test_the_docs_table_is_what_happened(found: Callable[[str], Row]) -> None:
    def bare(line: str) -> list[str]:
        cells = line.strip("|\n ").split(" | ")
        return [cell for field, cell in zip(Row._fields, cells, strict=True) if field not in GAPS or not cell[0].isdigit()]

    written = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    happened = table([found(name) for name in FAMILIES])
    fault = "run: python tests/test_families.py --write"
    assert [*map(bare, written.splitlines())] == [*map(bare, happened.splitlines())], fault


def test_the_table_knows_every_family_that_is_tested_and_no_other() -> None:
    assert {built(name).model.config.model_type for name in FAMILIES} == TABLE.keys()


def test_every_weight_belongs_to_the_part_its_family_says(name: str, policy: Policy) -> None:
    group_of = Groups(policy.model)
    for weight, _ in policy.model.named_parameters():
        parts = weight.split(".")
        carries = any(part in built(name).family.projector for part in parts)
        expected = "projector" if carries else "vision" if {*built(name).family.vision} & {*parts} else "language"
        assert group_of(weight) == expected, weight
        assert expected != "language" or {"language_model", "text_model", "lm_head"} & set(parts), weight
    assert {group_of(weight) for weight, _ in policy.model.named_parameters()} == {"language", "projector", "vision"}


def set_clock(monkeypatch: pytest.MonkeyPatch, day: datetime) -> None:
    """Let templates believe that it is this day."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromisoformat(day.isoformat())

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def test_a_prompt_in_tokens_is_what_the_familys_own_processor_makes_of_it(
    name: str, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_pictures(tmp_path)
    set_clock(monkeypatch, DAY)
    pieces = segments(policy.chat, TALK[:2], images=1)
    assert pieces[0].text.endswith(policy.family.place if name not in TITLES else policy.chat.image_token)
    # A template that can think asks for an answer in words of its own; others write it behind a prompt as it was said.
    asks = thinks(policy.chat)
    said = [] if asks else [pieces[2].text.partition(TALK[1].content)[0] + TALK[1].content]
    texts = [*(piece.text for piece in pieces[1:2]), *said]
    ours = [
        *policy.encode(Prefix(pieces[0].text, ("wide.png",), tmp_path)).ids,
        *(token for text in texts for token in policy.tokens(text)),
    ]
    render = cast(Callable[..., dict[str, torch.Tensor]], policy.processor.apply_chat_template)
    own = render(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": Image.open(tmp_path / "wide.png")},
                    {"type": "text", "text": TALK[0].content},
                ],
            },
            *([] if asks else [{"role": "assistant", "content": [{"type": "text", "text": TALK[1].content}]}]),
        ],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **({"add_generation_prompt": True, "enable_thinking": False} if asks else {}),
    )
    assert own["input_ids"][0, : len(ours)].tolist() == ours


def test_what_is_said_later_does_not_change_how_likely_an_answer_was(policy: Policy, tmp_path: Path) -> None:
    draw_pictures(tmp_path)
    policy.packs = False
    values = []
    for turns in (TALK[:2], TALK):
        pieces = segments(policy.chat, turns, images=1)
        learned = max(place for place, piece in enumerate(pieces) if piece.learn)
        tree = build_tree(policy, Prefix(pieces[0].text, ("wide.png",), tmp_path), [pieces[1 : learned + 1]])
        with torch.inference_mode():
            values.append(token_log_probabilities(policy.model, collate(policy, [tree])))
    assert len(values[1]) > len(values[0])
    assert torch.allclose(values[1][: len(values[0])], values[0], atol=1e-4)


@pytest.mark.parametrize("speaker", ["assistant", "virtual_user"])
def test_a_turn_behind_others_is_what_the_familys_own_generate_says(policy: Policy, tmp_path: Path, speaker: Role) -> None:
    draw_pictures(tmp_path)
    history = TALK[:3] if speaker == "assistant" else TALK[:2]
    sampler = LocalSampler(policy, root=tmp_path, tokens=1 << 16)
    prompts = [Prompt(history, (image,), speaker=speaker) for image in PICTURES]
    greedy = sampler.complete(prompts, k=1, sampling=SHORT.model_copy(update={"temperature": 0.0}), seed=0)
    generate = cast(Callable[..., torch.Tensor], policy.model.generate)
    for one, (said,) in zip(prompts, greedy, strict=True):
        asked = sampler.request(one)
        encoded = policy.encode(asked.prefix)
        ids = torch.tensor([[*encoded.ids, *asked.ids]])
        out = generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=SHORT.max_new_tokens,
            eos_token_id=sorted(policy.stop_ids),
            pad_token_id=policy.tokenizer.pad_token_id,
            **policy.join([encoded]),
            **policy.kinds([asked.prefix], left=[0], width=ids.shape[1]),
        )
        assert said.text == str(policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize(
    "name", ["llava_onevision", "qwen2_vl", "qwen3_vl", "smolvlm", "gemma4", "internvl", "glm4v", "glm46v", "minicpmv4_6"]
)
def test_a_processor_without_its_half_for_videos_keeps_what_its_folder_says_of_it(name: str, tmp_path: Path) -> None:
    built(name).save(tmp_path / "a")
    load_policy(tmp_path / "a").save(tmp_path / "b")
    first, second = (json.loads((tmp_path / one / "processor_config.json").read_text()) for one in "ab")
    assert first == second
    assert first["video_processor"]["video_processor_type"].endswith("VideoProcessor")
    assert first["processor_class"] == type(built(name).processor).__name__


def test_a_folder_of_gemma_4_with_parts_for_sound_and_videos_loads_and_keeps_them(tmp_path: Path) -> None:
    policy = built("gemma4")
    policy.save(tmp_path / "a")
    file = tmp_path / "a" / "processor_config.json"
    settings = json.loads(file.read_text())
    # What the part for sound is saved with on the hub.
    settings["feature_extractor"] = {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "sampling_rate": 16000}
    file.write_text(json.dumps(settings))
    load_policy(tmp_path / "a").save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "processor_config.json").read_text()) == settings


@pytest.mark.parametrize("name", ["llama4", "lfm2_vl", "pixtral", "mistral3", "qwen3_5", "minicpmv4_6"])
def test_a_folder_of_the_older_layout_gives_the_same_pictures(name: str, tmp_path: Path) -> None:
    policy = built(name)
    draw_pictures(tmp_path)
    policy.save(tmp_path / "model")
    # As published before the parts' settings stood in one file, by image processors named after torchvision.
    settings = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    pictures = settings.pop("image_processor")
    pictures["image_processor_type"] = pictures["image_processor_type"].removesuffix("Pil") + "Fast"
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(pictures))
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(settings))
    loaded = load_policy(tmp_path / "model")
    prefix = Prefix(segments(policy.chat, TALK[:2], images=1)[0].text, ("wide.png",), tmp_path)
    assert loaded.encode(prefix).digest == policy.encode(prefix).digest


def test_only_a_missing_half_for_videos_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built("llava").save(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise ImportError("sentencepiece is not there")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", fail)
    with pytest.raises(StllavaError, match="sentencepiece is not there"):
        load_policy(tmp_path)


def test_a_processor_without_a_chat_template_gets_its_familys_or_is_refused(tmp_path: Path) -> None:
    for name in ("paligemma", "llava"):
        built(name).save(tmp_path / name)
        (tmp_path / name / "chat_template.jinja").unlink()
    assert load_policy(tmp_path / "paligemma").chat.chat_template == PALIGEMMA
    with pytest.raises(StllavaError, match=r"chat_template\.jinja"):
        load_policy(tmp_path / "llava")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("mllama", r"Llama 3\.2 Vision, which looks at images from beside its text"),
        ("idefics", "the first Idefics, which looks at images from beside its text"),
        ("diffusion_gemma", "does not write from left to right"),
        ("florence2", "an encoder with a decoder"),
        ("t5gemma2", "an encoder with a decoder"),
    ],
)
def test_a_model_that_reads_its_prompt_in_another_way_is_refused_in_words(kind: str, told: str, tmp_path: Path) -> None:
    built("llava").save(tmp_path)
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(StllavaError, match=f"is .*{told}.*docs/families.md"):
        load_policy(tmp_path)


def test_a_template_that_writes_the_day_writes_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    today, later = FAMILIES["mistral3"](), FAMILIES["mistral3"]()
    first = segments(today.chat, TALK, images=1)
    set_clock(monkeypatch, DAY + timedelta(days=500))
    assert segments(later.chat, TALK, images=1) == first
    assert "Today is 20" in first[0].text


def test_the_docs_template_holds_a_virtual_user() -> None:
    policy = FAMILIES["llava_next"]()
    policy.processor.chat_template = DOCS.read_text(encoding="utf-8").partition("```jinja\n")[2].partition("```")[0]
    assert virtual_role(policy.chat) == "virtual_user"
    learned = [piece.text for piece in segments(policy.chat, TALK, images=1) if piece.learn]
    assert learned == [f" {turn.content}</s>" for turn in TALK[1:]]


def write() -> None:
    """Write the table into the docs."""
    rows = []
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(go(name, Path(folder)))
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    DOCS.write_text(before + BEGIN + table(rows) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_families.py --write")
    write()
