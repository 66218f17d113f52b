"""Verbs, nouns and actions from a model that has learned only some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evit_models.training.evaluation import Scores
from evit_models.training.objective import SINGLE


def epic_scores(
    heads: Mapping[str, int], actions: Sequence[tuple[int, int]], sizes: Mapping[str, int]
) -> Scores:
    """Returns what makes probabilities of "verb", "noun" and "action" out of a model's logits.

    A model of actions gives the probability of a verb as the sum over the actions that have it, and
    so for nouns; one that no action has gets 0. A model of verbs and nouns gives that of an action
    as the product of both; what it gives to pairs that are no action is lost, so the sum over
    actions may be below 1.

    Args:
        heads: outputs of the model: those of its only head, or of "verb" and "noun".
        actions: (verb, noun) of every action, in the order of the actions' numbers.
        sizes: how many there are of "verb" and "noun".

    Raises:
        ValueError: heads that are neither, or not of these sizes.
    """
    verbs, nouns = torch.tensor(list(actions), dtype=torch.int64).T
    single = list(heads) == [SINGLE]
    expected = (
        {SINGLE: len(actions)} if single else {name: sizes[name] for name in ("verb", "noun")}
    )
    if dict(heads) != expected:
        raise ValueError(f"epic_scores: heads are {dict(heads)}, expected {expected}")

    def of_actions(logits: Tensor) -> dict[str, Tensor]:
        action = logits.softmax(-1)
        found = {"action": action}
        for name, classes in (("verb", verbs), ("noun", nouns)):
            total = action.new_zeros(*action.shape[:-1], sizes[name])
            found[name] = total.index_add_(-1, classes.to(action.device), action)
        return found

    def of_verbs_and_nouns(logits: Tensor) -> dict[str, Tensor]:
        parts = dict(zip(heads, logits.split(list(heads.values()), dim=-1), strict=True))
        verb, noun = parts["verb"].softmax(-1), parts["noun"].softmax(-1)
        return {"verb": verb, "noun": noun, "action": verb[..., verbs] * noun[..., nouns]}

    return of_actions if single else of_verbs_and_nouns
