"""Dynamic sampling: batches are joined without a change to any answer, and what is drawn is new."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from aqa_lib.logps import completion_logps
from aqa_lib.tests.test_grpo import models
from aqa_lib.training import data, dynamic


@pytest.mark.parametrize("encoded", [False, True])
def test_joined_batches_have_the_log_probabilities_that_they_had_apart(model, rollouts, questions, encoded):
    if encoded:  # clips that a frozen audio tower has heard before
        models.choose_trainable(model, [])
        rollouts = replace(rollouts, prompts=data.AudioCache(model, 1.0)(questions, rollouts.prompts))
    first, second = rollouts.select([3, 0]), rollouts.select([1, 2])
    together = dynamic.join(first, second)
    order = [3, 0, 1, 2]
    assert torch.equal(together.ended, rollouts.ended[order])
    with torch.no_grad():
        whole, (joined, entropies) = completion_logps(model, rollouts), completion_logps(model, together)
    assert_close(joined, whole[0][order], atol=1e-5, rtol=1e-5)
    assert_close(entropies, whole[1][order], atol=1e-5, rtol=1e-5)


def answered(rollouts, questions, rewards):
    texts = [[f"{question.id} {i}" for i in range(3)] for question in questions]
    return dynamic.Answered(questions, rollouts, texts, torch.tensor(rewards))


def test_groups_that_agree_are_replaced_in_their_place(rollouts, questions):
    some = answered(rollouts.select([0, 1]), questions[:2], [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    assert some.agree == [0]
    made = some.replace(some.agree, answered(rollouts.select([3]), questions[3:], [[2.0, 0.0, 2.0]]))
    assert [question.id for question in made.questions] == ["q3", "q1"] and made.texts[0][2] == "q3 2"
    assert made.rewards.tolist() == [[2.0, 0.0, 2.0], [0.0, 1.0, 0.0]] and not made.agree
    for row, was in enumerate((3, 1)):
        ours, theirs = made.rollouts.select([row]), rollouts.select([was])
        assert torch.equal(ours.completion_ids[ours.mask], theirs.completion_ids[theirs.mask])


def test_fewer_others_than_groups_that_agree_replace_the_first(rollouts, questions):
    some = answered(rollouts.select([0, 1]), questions[:2], [[1.0] * 3, [0.0] * 3])
    made = some.replace(some.agree, answered(rollouts.select([2]), questions[2:3], [[1.0, 0.0, 0.0]]))
    assert [question.id for question in made.questions] == ["q2", "q1"]


def test_others_are_none_of_those_that_were_asked_and_a_seed_repeats_them():
    drawn = dynamic.others(100, {3, 4}, 50, [0, 7])
    assert len(set(drawn)) == 50 and not {3, 4} & set(drawn)
    assert drawn == dynamic.others(100, {3, 4}, 50, [0, 7]) != dynamic.others(100, {3, 4}, 50, [0, 8])
