"""Results repeat: the same seed gives the same numbers, whatever the batch, and every result says how it was made."""

import json
from pathlib import Path

import pytest
import torch

from aqa_lib import evaluation, inputs, model
from aqa_lib.dataset import read_mmau
from aqa_lib.scale import SCALES
from aqa_lib.sft import SFTConfig, SFTTrainer
from aqa_lib.tiny import synth

CLOCK = ("time", "runtime", "per_second")


@pytest.fixture(scope="module")
def trained():
    """The embedded model: its replies are the ones that results are about."""
    return model.load(SCALES["tiny"].model, SCALES["tiny"].dtype, train=())


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    synth.write(folder, train=0, validation=0, test=24)
    return read_mmau(folder / "test.json")


def test_the_same_seed_gives_the_same_run_bit_for_bit(train, model, tmp_path):
    start, made = {k: v.clone() for k, v in model.state_dict().items()}, []
    for seed in (0, 0, 1):
        model.load_state_dict(start)
        torch.rand(7)  # whatever was drawn before
        logs = train(seed=seed, max_steps=2, beta=0.04).state.log_history[:-1]
        curve = [{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in logs]
        made.append((curve, b"".join(p.detach().numpy().tobytes() for p in model.parameters())))
    assert made[0] == made[1] and made[0][0] != made[2][0]


def test_greedy_replies_do_not_depend_on_the_batch(trained, asked):
    """On a CPU in float32: the same text to the last letter. Logits differ by rounding, about 1e-5, and no more."""
    options = {"max_completion_length": 32, "progress": False}
    replies = [evaluation.predict(*trained, asked, batch_size=size, **options) for size in (24, 7, 1)]
    assert replies[0] == replies[1] == replies[2]
    assert len({row["model_output"] for row in replies[0]}) > 5


def test_logits_depend_on_the_batch_by_rounding_alone(trained, asked):
    policy, processor = trained
    examples = [inputs.prepare(processor, question) for question in asked[:6]]
    with torch.no_grad():
        together, alone = (last_logits(policy, processor, group) for group in ([examples], [[e] for e in examples]))
    assert (together - alone).abs().max() < 1e-4 * together.abs().max()


def last_logits(policy, processor, groups):
    rows = []
    for group in groups:
        prompts = inputs.collate(processor, group)
        mask = prompts.attention_mask
        hidden = model.backbone(policy, model.embed(policy, prompts), mask, inputs.positions(mask))
        rows.append(model.parts(policy).head(hidden[:, -1]))
    return torch.cat(rows)


def test_a_run_says_how_it_was_made(train, questions, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_the_environment")
    monkeypatch.setenv("WANDB_API_KEY", "key_of_the_environment")
    train(rewards=["accuracy"], max_steps=1, seed=5, save_strategy="steps", save_steps=1)
    made = json.loads((tmp_path / "run.json").read_text())
    assert (made["trainer"], made["scale"], made["seed"]) == ("GRPOTrainer", "tiny", 5)
    assert made["rewards"] == ["accuracy"] and made["options"]["learning_rate"] == 1e-3
    assert made["questions"]["train"]["n"] == len(questions) and len(made["questions"]["train"]["sha256"]) == 64
    assert {"torch", "transformers", "trl", "python", "commit", "dirty", "device"} <= set(made["environment"])
    assert made["resumed_from"] is None
    train(rewards=["accuracy"], max_steps=2, seed=5, logging_steps=2, resume=True)
    again = json.loads((tmp_path / "run.json").read_text())
    assert again["resumed_from"].endswith("checkpoint-1") and again["started"] == made["started"]
    assert again["resumes"][0]["changed"]["max_steps"] == [1, 2] == again["resumes"][0]["changed"]["logging_steps"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"of_the_environment" in path.read_bytes()]


def test_sft_says_so_too(model, processor, questions, tmp_path):
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, eval_strategy="no", save_strategy="no",
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    SFTTrainer(model, processor, args, questions[:2]).train()
    made = json.loads((tmp_path / "run.json").read_text())
    assert made["trainer"] == "SFTTrainer" and made["questions"]["train"]["n"] == 2 and made["rewards"] is None


def test_predictions_say_how_they_were_made(trained, asked, tmp_path):
    path, data = tmp_path / "p.jsonl", Path(asked[0].audio).parents[1] / "test.json"
    evaluation.predict(*trained, asked[:2], path, max_completion_length=2, progress=False, seed=3, data=data)
    made = json.loads(Path(f"{path}.meta.json").read_text())
    assert (made["scale"], made["seed"]) == ("tiny", 3)
    assert len(made["settings"]["data_sha256"]) == len(made["settings"]["weights"]) == 64
    assert {"torch", "transformers", "python", "commit", "dirty", "device", "dtype"} <= set(made["environment"])
