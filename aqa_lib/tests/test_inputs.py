"""Making prompts: what is refused, and the controls. That they equal the processor's own is in test_model."""

import pytest
import torch

from aqa_lib import inputs, prompt


def test_audio_markup_in_a_question_is_refused(processor, questions, clips):
    messages = prompt.messages(questions[0], 2)
    messages[0]["content"][1]["text"] += " <|AUDIO|>"
    with pytest.raises(inputs.InputError, match="remove it"):
        inputs.encode(processor, messages, clips[0])


def test_controls(processor, questions):
    heard, silent, none = (
        inputs.prepare(processor, questions[1], heard=heard) for heard in ("heard", "silent", "none")
    )
    assert heard.ids == silent.ids and not torch.equal(heard.mel, silent.mel)
    assert none.mel is None and processor.audio_token_id not in none.ids
    with pytest.raises(inputs.InputError, match="unknown"):
        inputs.prepare(processor, questions[1], heard="loud")
