"""Attending in parts, put together or span by span, is attending with the mask over the whole row, gradients included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stllava.tree import attention
from stllava.tree.attention import Cut, attend
from stllava.tree.layout import ROOT, Node, pack, spans
from test_layout import rows

WIDTH = 8


class Layer(nn.Module):
    """What transformers' attention is told of the layer it works for."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def cut_of(several: list[list[Node]], *, least: int, most: int) -> Cut:
    """Rows cut into spans, with the mask of all."""
    layouts = [pack(nodes) for nodes in several]
    width = max(len(layout.ids) for layout in layouts)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(several), 1, 1, 1)
    for row, layout in enumerate(layouts):
        sees[row, 0, : len(layout.ids), : len(layout.ids)] = torch.from_numpy(layout.mask)
    cut = [
        (row, *span.root, *span.own, span.sees_root)
        for row, nodes in enumerate(several)
        for span in spans(nodes, least=least, most=most)
    ]
    return Cut(torch.tensor(cut), torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min))


def attended(cut: Cut | None, mask: Tensor, inputs: list[Tensor], weights: Tensor, groups: int) -> list[Tensor]:
    """What comes of attention, and the gradients of a weighted sum of it."""
    learned = query, key, value = [one.detach().clone().requires_grad_() for one in inputs]
    output, _ = attend(Layer(groups), query, key, value, mask, cut=cut, scaling=0.3)
    (output * weights).sum().backward()
    return [output.detach(), *(one.grad for one in learned if one.grad is not None)]


@pytest.mark.parametrize("together", [True, False], ids=["put together", "span by span"])
@pytest.mark.parametrize("groups", [1, 2])
@given(several=st.lists(rows(), min_size=1, max_size=2), least=st.integers(0, 20), most=st.integers(1, 9))
def test_parts_attend_as_the_whole_row_does(
    together: bool, groups: int, several: list[list[Node]], least: int, most: int
) -> None:
    cut = cut_of(several, least=least, most=most)
    draw = torch.Generator().manual_seed(0)
    width, heads = cut.mask.shape[-1], 2 * groups
    inputs = [torch.randn(len(several), count, width, WIDTH, generator=draw) for count in (heads, 2, 2)]
    weights = torch.randn(len(several), width, heads, WIDTH, generator=draw)
    for row, nodes in enumerate(several):
        weights[row, sum(len(node.ids) for node in nodes) :] = 0  # What stands behind a row is read by nobody.
    with pytest.MonkeyPatch.context() as patch:
        if not together:
            patch.setattr(attention, "cascades", lambda *_, **__: False)
        made = attended(cut, cut.mask, inputs, weights, groups)
    whole = attended(None, cut.mask, inputs, weights, groups)
    read = weights.any(-1).any(-1)
    torch.testing.assert_close(made[0][read], whole[0][read], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(made[1:], whole[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_parts_are_put_together_in_double_precision_too() -> None:
    nodes = [Node((1,) * 10, ROOT, False), Node((1,) * 3, 0, True), Node((1,) * 4, 0, True)]
    cut = cut_of([nodes], least=1, most=5)
    cut = Cut(cut.spans, cut.mask.double())
    inputs = [torch.randn(1, 2, 17, WIDTH, dtype=torch.float64) for _ in range(3)]
    weights = torch.randn(1, 17, 2, WIDTH, dtype=torch.float64)
    made, whole = (attended(one, cut.mask, inputs, weights, 1) for one in (cut, None))
    for ours, theirs in zip(made, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_questions_about_an_image_look_at_it_in_one_call() -> None:
    nodes = [Node((1,) * 10, ROOT, False)]
    for _ in range(3):
        nodes += [Node((1,) * 3, 0, False), Node((1,) * 2, len(nodes), True)]
    (calls,) = cut_of([nodes], least=1, most=5).calls
    assert [call.queries for call in calls.own] == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 25)]
    assert [(call.queries, call.keys, call.mask) for call in calls.shared] == [
        ((5, 10), (0, 5), None),
        ((10, 25), (0, 10), None),
    ]
