"""The step inspector shows what a run kept, with probabilities that transformers' own forward pass gives."""

import json

import nbformat
import pytest
import torch

from aqa_lib import prompt
from aqa_lib.course import inspector, render
from aqa_lib.runtime.errors import AqaError


@pytest.fixture
def run(tmp_path, questions):
    rows = [
        {"step": step, "id": asked.id, "question": asked.question, "choices": list(asked.choices)}
        | {
            "answer": asked.answer,
            "completions": ["<answer>rain</answer>", "a <b>cat", "", ""],
            "rewards": [2.0, 0.0, 1.0, 1.0],
        }
        for step, asked in zip((0, 4, 9, 14), (*questions[:2], questions[0], questions[1]), strict=True)
    ]
    (tmp_path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"options": {"prompt_style": 2, "scale_rewards": "group"}}
    (tmp_path / "run.json").write_text(json.dumps(options))
    return tmp_path


@pytest.fixture
def steps(run, questions, model, processor):
    after = type(model)(model.config).eval()
    after.load_state_dict({name: 1.5 * weight for name, weight in model.state_dict().items()})
    return inspector.step_through(run, questions, model, after, processor)


def test_probabilities_are_those_of_transformers_own_forward_pass(steps, questions, clips, processor):
    answer = "<answer>rain</answer>"
    tokens, *logps = steps.probabilities(questions[0], [answer, "a cat", ""])
    text = processor.apply_chat_template(prompt.messages(questions[0], 2), tokenize=False, add_generation_prompt=True)
    given = [
        processor(text=text + reply, audio=clips[0].wave, sampling_rate=16_000, return_tensors="pt")
        for reply in ("", f"{answer}<|im_end|>")
    ]
    ids, P = given[1].input_ids, given[0].input_ids.shape[1]
    assert tokens[0] == [processor.tokenizer.decode([token]) for token in ids[0, P:]] and tokens[2] == ["<|im_end|>"]
    for model, found in zip(steps.models, logps, strict=True):
        with torch.no_grad():
            own = model(**given[1]).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[P - 1 :, 0]
        torch.testing.assert_close(found[0, : len(own)], own, atol=1e-4, rtol=1e-4)


def test_each_answer_has_its_reward_and_advantage_and_nothing_of_it_is_run(steps):
    page = steps.page(0)
    assert page.count("<tr>") == 4 and "+1.22" in page and "-1.22" in page and "+0.00" in page
    assert ">2</td><td" in page, "the empty answer came twice"
    assert "<b>" not in page and "<answer>" not in page and "&lt;answer&gt;" in page
    assert "<audio" in page and page.count("all of it:") == 3


def test_the_slider_changes_the_page_and_a_page_without_a_kernel_shows_three_steps(steps):
    assert [label for label, _ in steps.slider.options] == ["step 1", "step 5", "step 10", "step 15"]
    steps.slider.value = 2
    assert steps.card.value == steps.page(2) != steps.page(1)
    shown = steps._repr_mimebundle_()
    assert render.WIDGET in shown and shown["text/html"].count("<details") == 4
    output = nbformat.v4.new_output("display_data", data=shown)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])
    (kept,) = render.static(book).cells[0].outputs
    assert set(kept.data) == {"text/html", "text/plain"} and "<audio" not in kept.data["text/html"]


def test_what_fails_behind_the_slider_is_told_in_place_of_the_page(steps, monkeypatch):
    monkeypatch.setattr(steps, "page", lambda place: open("/no/such/<clip>"))
    steps.slider.value = 1
    assert "No such file" in steps.card.value and "&lt;clip&gt;" in steps.card.value


def test_a_question_that_is_not_given_is_told_on_its_page(run, model, processor):
    steps = inspector.step_through(run, [], model, model, processor)
    assert "not among those given" in steps.page(0)


@pytest.mark.parametrize("file", ["completions.jsonl", "run.json"])
@pytest.mark.parametrize("held", ["", "no JSON", None])
def test_a_folder_that_is_no_run_is_refused_in_a_sentence(run, questions, model, processor, file, held):
    (run / file).unlink()
    if held is not None:
        (run / file).write_text(held)
    with pytest.raises(AqaError, match="not the folder of a GRPO run|holds no answers"):
        inspector.step_through(run, questions, model, model, processor)
