"""The probability of each choice, against transformers' own processor and forward."""

import pytest
import torch

from aqa_lib import evaluation, prompt


@pytest.mark.parametrize(("style", "thought"), [(2, ""), (3, ""), (3, "<think>It barks.</think>")])
def test_choice_probabilities_equal_a_forward_for_each_choice(model, processor, questions, clips, style, thought):
    """By transformers' own processor and forward: one full row a choice, logits everywhere."""
    question, clip = questions[2], clips[2]
    text = processor.apply_chat_template(prompt.messages(question, style), tokenize=False, add_generation_prompt=True)
    scores = []
    for choice in question.choices:
        ids = [
            processor(text=text + reply, audio=clip.wave, sampling_rate=16_000, return_tensors="pt")
            for reply in (thought, f"{thought}<answer>{choice}</answer>")
        ]
        tokens, P = ids[1].input_ids, ids[0].input_ids.shape[1]
        with torch.no_grad():
            logps = model(**ids[1]).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])
        scores.append(logps[P - 1 :].sum())
    model.train()
    found = evaluation.choice_probabilities(model, processor, question, style, thought=thought)
    assert model.training and list(found) == list(question.choices)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == pytest.approx(torch.stack(scores).softmax(0).tolist(), abs=1e-4)
    silent = evaluation.choice_probabilities(model, processor, question, style, "silent", thought)
    assert max(abs(found[choice] - silent[choice]) for choice in found) > 1e-6
