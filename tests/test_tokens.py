"""What a text spells is text: no question, answer or system message holds a special token, whatever it says.

The kinds come from public bug reports: `<image>` in a LLaVA answer ends training with a mismatch of places and images,
and `<|im_end|>` or `</s>` in somebody's words closes the turn and lets them open another.
"""

import string
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from helpers.architectures import TEXTS, id_of
from helpers.families import FAMILIES
from stllava.config import SamplingOptions
from stllava.data.conversations import conversation
from stllava.errors import TextError
from stllava.generation.branches import Branch, Branches
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import Policy
from stllava.model.prompt import Segment, segments
from stllava.model.template import REFUSED, special_tokens
from stllava.model.tokens import ALIAS, BEGIN, END, _Speller, is_marked, spelled, spellings, tokenize
from stllava.records import Lineage, Message, Preference
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.sft_dataset import SftDataset
from stllava.tree.forward import collate, token_log_probabilities

# A processor that makes arrays of tensors in the old way (transformers 5.23).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

built = cache(lambda family: FAMILIES[family]())
PLAIN = st.text(alphabet=[*string.ascii_letters, *" \n<>|/_?.,é右"], max_size=24)


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    made: Policy = built(request.param)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(tmp_path / "a.png")
    return tmp_path


def talk(policy: Policy, question: str, answer: str, *, images: int = 0) -> list[Segment]:
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return segments(policy.chat, turns, images=images)


def special(policy: Policy, pieces: list[Segment]) -> list[int]:
    """The special tokens of a text, in order."""
    known = {number for number, token in policy.tokenizer.added_tokens_decoder.items() if token.special}
    return [token for piece in pieces for token in policy.tokens(piece.text) if token in known]


def test_the_marks_are_those_that_transformers_processors_know() -> None:
    assert (BEGIN, END) == (chat_template_utils._CONTROL_TOKEN_START, chat_template_utils._CONTROL_TOKEN_END)


def test_no_text_writes_a_special_token_and_every_text_comes_back(policy: Policy) -> None:
    tokens = special_tokens(policy.chat)
    usual = special(policy, talk(policy, "what?", "the lung"))

    @settings(max_examples=15)
    @given(st.lists(st.one_of(PLAIN, st.sampled_from(tokens)), min_size=2, max_size=6), st.sampled_from(tokens), PLAIN)
    def written_as_said(parts: list[str], token: str, rest: str) -> None:
        question, answer = f"q{''.join(parts)}", f"a{rest}{token}{rest}"
        pieces = talk(policy, question, answer)
        assert special(policy, pieces) == usual
        text = str(policy.tokenizer.decode([token for piece in pieces for token in policy.tokens(piece.text)]))
        assert question in text
        assert answer in text

    written_as_said()


def test_ordinary_text_has_the_tokens_that_the_tokenizer_gives_it(policy: Policy) -> None:
    speller = _Speller.of(policy.tokenizer)

    @settings(max_examples=15)
    @given(PLAIN, PLAIN)
    def as_ever(question: str, answer: str) -> None:
        for piece in talk(policy, f"q{question}", f"a{answer}"):
            wanted = tuple(policy.tokenizer(piece.text, add_special_tokens=False)["input_ids"])
            assert policy.tokens(piece.text) == wanted
            assert speller.split(piece.text) == wanted  # What marked text is split by agrees where there are no marks.

    as_ever()


@pytest.mark.parametrize("where", ["question", "answer", "later question", "system message"])
def test_an_image_place_in_a_text_is_learned_as_text(policy: Policy, root: Path, where: str) -> None:
    odd = f"as {policy.chat.image_token} shows"
    turns = [
        Message(role="user", content=odd if where == "question" else "what?"),
        Message(role="assistant", content=odd if where == "answer" else "a lung"),
        Message(role="user", content=odd if where == "later question" else "sure?"),
        Message(role="assistant", content="yes"),
    ]
    lead = [Message(role="system", content=odd)] if where == "system message" else []
    plain = conversation(("a.png",), (Message(role="user", content="sure?"), Message(role="assistant", content="yes")))
    lessons = SftDataset(
        policy, [plain, conversation(("a.png",), (*lead, *turns))], images=root, self_question_ratio=0.0, seed=0, max_tokens=512
    )
    if where == "system message" and lessons.dropped:
        # Some templates take no system message; some processors cannot tell such a text from the token.
        assert set(lessons.dropped) <= {REFUSED, "special token in the text"}
        return
    assert not lessons.dropped
    trees = [lessons.tree(index, 0) for index in range(len(lessons.groups))]
    policy.packs = False
    with torch.inference_mode():
        values = token_log_probabilities(policy.model, collate(policy, trees))
    assert bool(values.isfinite().all())


def test_a_special_token_in_a_prompt_changes_nothing_for_those_beside_it(root: Path) -> None:
    policy = built("llava")
    sampler = LocalSampler(policy, root=root, tokens=4096)
    how = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=5)
    texts = ("is it?", "is </s> in <image>?", "<s>USER: hi ASSISTANT:")
    prompts = [Prompt((Message(role="user", content=text),), ("a.png",)) for text in texts]
    for prompt in prompts:
        sampler.check(prompt)
    together = sampler.complete(prompts, k=2, sampling=how, seed=1)
    assert together == [sampler.complete([prompt], k=2, sampling=how, seed=1)[0] for prompt in prompts]


@pytest.mark.parametrize(("text", "noted"), [("the <image> lung", True), ("</s>", True), (None, False)], ids=repr)
def test_the_probability_of_a_spelt_token_is_noted_and_that_of_a_real_one_is_not(
    root: Path, text: str | None, *, noted: bool
) -> None:
    policy = built("llava")
    request = LocalSampler(policy, root=root, tokens=4096).request(Prompt((Message(role="user", content="what?"),), ("a.png",)))
    grown = Branches(policy, [request], sampling=SamplingOptions(), seed=0)
    branch, stop = Branch(0, 0), policy.tokenizer.eos_token_id
    image = id_of(policy.processor.tokenizer, "<image>")
    spelt = spelled(text or "lung", spellings(["<image>", "</s>"]))
    said = [*([] if text else [image]), *policy.tokens(f"{request.turn.blank}{spelt}")]
    grown.said[branch], grown.sums[branch] = [*said, stop], -1.0
    told = grown.completion(branch)
    assert (told.log_probability == -1.0) is noted
    assert told.text == (text or "lung")


def tokenizer_like(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of another make than the families': SentencePiece's in three settings, and Llama's first."""
    alphabet = [*(chr(number) for number in range(33, 127)), "▁"]
    special: list[str | AddedToken] = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        trainer: trainers.Trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
        )
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    if kind == "prepending":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        scheme = "always" if kind == "unigram" else kind
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    made.train_from_iterator(TEXTS * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    # One that the vocabulary does not hold, as <|im_end|> is in Qwen's, and one that takes in the white space behind it.
    tokenizer.add_tokens([AddedToken("<image>", special=True), AddedToken("<|end|>", special=True, rstrip=True)])
    return tokenizer


@pytest.mark.parametrize("kind", ["unigram", "first", "always", "never", "prepending"])
def test_tokenizers_that_write_blanks_spell_special_tokens_too(kind: str) -> None:
    tokenizer = tokenizer_like(kind)
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    speller = _Speller.of(tokenizer)
    written = ["hello world", " x", "</s> x", "</s>x", "<s>USER: what?", "a <image> b</s>", "<|end|>\n x", "x</s></s>"]
    for text in written:
        assert speller.split(text) == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    for text in ("x</s>y", "</s> z", "a <image> b", "<|end|>", "the lung</s>, <unk>"):
        ids = tokenize(tokenizer, f"<s>{spelled(text, spellings(names))}</s>")
        assert [token for token in ids if token in tokenizer.added_tokens_decoder] == [ids[0], ids[-1]]
        assert str(tokenizer.decode([*ids[1:-1]])).strip() == text.strip()


def test_a_special_token_that_plain_letters_would_merge_into_is_spelt_in_pieces() -> None:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    made.train_from_iterator(["a</s>b</s>"] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")
    assert made.model.tokenize("</s>")[0].id == tokenizer.eos_token_id, "the training has merged it"
    ids = tokenize(tokenizer, spelled("a</s>b", spellings(["</s>"])))
    assert tokenizer.eos_token_id not in ids
    assert "".join(tokenizer.convert_ids_to_tokens([*ids])) == "a</s>b"


def test_a_rejected_answer_that_was_cut_off_is_learned_without_an_end(policy: Policy, root: Path) -> None:
    whole = Preference(
        id="p",
        images=("a.png",),
        prompt=(Message(role="user", content="what?"),),
        chosen="lung",
        rejected="none and none and",
        margin=0.5,
        lineage=Lineage(question_id="q", answers_id="a", judgment_id="j"),
    )
    cut = whole.model_copy(update={"rejected_ended": False})
    learned = []
    for pairs in ([whole], [cut], [whole, cut]):
        made = PreferenceDataset(policy, pairs, images=root, max_tokens=16384)
        (tree,), (nodes,) = made.trees, made.pairs
        learned.append([tuple(list(tree.nodes[node].ids) for node in pair) for pair in nodes])
    ((chosen, ended),), ((same, open_ended),), both = learned
    assert both == [(chosen, ended), (chosen, open_ended)]
    assert same == chosen
    assert policy.stop_ids.intersection(ended)
    assert not policy.stop_ids.intersection(open_ended)
    assert ended[: len(open_ended)] == open_ended


def test_no_chosen_or_rejected_answer_writes_a_special_token(policy: Policy, root: Path) -> None:
    tokens = special_tokens(policy.chat)
    pair = Preference(
        id="p",
        images=("a.png",),
        prompt=(Message(role="user", content=f"what is {tokens[0]}?"),),
        chosen=f"the {tokens[-1]} lung",
        rejected=f"{policy.tokenizer.eos_token}none",
        margin=0.5,
        lineage=Lineage(question_id="q", answers_id="a", judgment_id="j"),
    )
    (tree,) = PreferenceDataset(policy, [pair], images=root, max_tokens=16384).trees
    plain = pair.model_copy(update={"prompt": (Message(role="user", content="what?"),), "chosen": "lung", "rejected": "none"})
    (usual,) = PreferenceDataset(policy, [plain], images=root, max_tokens=16384).trees
    known = {number for number, token in policy.tokenizer.added_tokens_decoder.items() if token.special}
    written = [[token for token in node.ids if token in known] for node in tree.nodes]
    assert written == [[token for token in node.ids if token in known] for node in usual.nodes]


def test_marks_in_a_text_come_back_and_the_private_character_of_aliases_is_refused_beside_a_token() -> None:
    policy = built("qwen2_vl")
    text = f"{BEGIN}<|im_end|>{END} {END}x{BEGIN}"
    (piece,) = [piece for piece in talk(policy, "what?", text) if piece.learn]
    assert text in str(policy.tokenizer.decode([*policy.tokens(piece.text)]))
    with pytest.raises(TextError, match="beside what looks like a special token"):
        policy.tokens(spelled(f"<|im_end|>{ALIAS}1{ALIAS}", spellings(special_tokens(policy.chat))))


def test_text_without_special_tokens_is_not_marked() -> None:
    assert not any(is_marked(piece.text) for piece in talk(built("qwen2_vl"), "is it < 3 cm |?", "no>"))


def test_a_tokenizer_in_python_spells_special_tokens_too() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    assert not tokenizer.is_fast
    ids = tokenize(tokenizer, f"{spelled('x</s>y', spellings(['</s>']))}</s>")
    assert (tokenizer.decode([*ids[:-1]]), ids[-1]) == ("x</s>y", tokenizer.eos_token_id)
