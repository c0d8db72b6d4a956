"""What tests of several rooms use: a short training, and the files that runs leave behind."""

import json

from aqa_lib.grpo import GRPOConfig
from aqa_lib.prompt import extract_answer

CHOICES = ["a dog", "a cat"]
REPLIES = {
    2: ["<answer>a dog</answer>"] * 30 + ["<answer>a cat</answer>"] * 9 + ["a dog"],
    3: ["<think>It sounds like a dog.</think><answer>a dog</answer>"] * 20  # 5 words, right, and it says so
    + ["<think>It sounds like a cat to me.</think><answer>a dog</answer>"] * 5  # 7 words, right by luck
    + ["<think>Hm.</think><answer>a cat</answer>"] * 10  # 1 word, wrong
    + ["<think>It goes on and on and"] * 5,  # cut
}


def write_run(folder, name, style, method="grpo", seed=0, replies=None, trained=True, shift=0.0):
    """Write what an evaluation and a training leave behind; return the predictions' path."""
    path = folder / f"{name}.jsonl"
    rows = []
    for i, reply in enumerate(replies or REPLIES[style]):
        answer = extract_answer(reply) or ""
        rows.append(
            {
                "index": i, "id": str(i), "task": "sound", "question": "What barks?", "choices": CHOICES,
                "answer": "a dog", "model_output": reply, "prediction": answer, "correct": answer == "a dog",
                "tokens": len(reply) // 4, "ended": "<answer>" in reply or "<" not in reply,
            }
        )  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {
        "settings": {"style": style, "audio": "heard", "shuffle_choices": None, "decoding": "greedy"},
        "labels": {"method": method, "train_seed": seed, "data": "test.json"},
        "counts": {"task": {"sound": len(rows)}},
        "seconds": 8.0,
    }
    (folder / f"{name}.jsonl.meta.json").write_text(json.dumps(meta))
    if trained:
        (folder / name).mkdir()
        kind = "think_format" if style == 3 else "format"
        lines = [f"step,rewards/accuracy/mean,rewards/{kind}/mean,reward_std,completions/mean_length,step_time"]
        lines += ["0,,,,,"]  # the evaluation before the first step
        lines += [
            f"{s},{0.2 + s / 50 + shift},{min(1, s / 10)},{0.5 - s / 50},{20 * style},{style}" for s in (1, 10, 20)
        ]
        (folder / name / "metrics.csv").write_text("\n".join(lines) + "\n")
        texts = [REPLIES[style][0], REPLIES[style][-6]]
        samples = [{"step": s, "choices": CHOICES, "completions": texts} for s in (0, 9)]
        (folder / name / "completions.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    return path


def asked(name, reply, answer="a dog", task="sound"):
    """Write a prediction's row as an evaluation does, for one question with three choices."""
    return {
        "id": name, "task": task, "question": "What barks?", "choices": ["a dog", "rain", "wind"], "answer": answer,
        "model_output": reply, "prediction": extract_answer(reply or "") or "",
    }  # fmt: skip


def length_reward(prompts, completions, **columns):
    """Reward short answers: something that an untrained model can learn."""
    return [-float(len(completion[0]["content"])) for completion in completions]


SHORT = {  # two steps, and nothing but the metrics written
    "max_steps": 2,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "max_completion_length": 6,
    "logging_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def config(folder, **options):
    return GRPOConfig(str(folder), **SHORT | {"num_generations": 4} | options)
