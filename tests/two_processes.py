"""What each process of test_parallel.py does: `torchrun --nproc_per_node 2 two_processes.py FOLDER`."""

import json
import sys
from pathlib import Path
from unittest import mock

import torch

from aqa_lib import dataset, evaluation, parallel, predictions, pretrain
from aqa_lib.sft import SFTConfig, SFTTrainer
from aqa_lib.trainer import GRPOConfig, GRPOTrainer


def brevity(prompts, completions, **columns):
    """Reward short answers."""
    return [-float(len(completion[0]["content"])) for completion in completions]


def stop_at_second(append):
    """Write one row as ever, and stop at the next."""
    written = []

    def once(file, row):
        if written:
            raise KeyboardInterrupt
        written.append(append(file, row))

    return once


def train(folder: Path, accumulate: int, resume: str | None = None, **options) -> torch.nn.Module:
    """Train three steps by GRPO and SFT, in which answers end at different steps; leave what was found in `folder`."""
    processor = pretrain.build_processor()
    questions = dataset.read(folder.parent / "data" / "train.jsonl")
    held_out = dataset.read(folder.parent / "data" / "val.jsonl")
    common = {
        "max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "max_completion_length": 5,
        "gradient_accumulation_steps": accumulate, "logging_steps": 3, "logging_first_step": False, "eval_steps": 3,
        "save_steps": 3, "report_to": "none", "disable_tqdm": True,
    } | options  # fmt: skip
    for name in ("grpo", "sft"):
        model = pretrain.build_model(processor, seed=1)
        model.generation_config.eos_token_id = list(range(0, len(processor.tokenizer), 4))
        if name == "grpo":
            options = common | {"num_generations": 3, "beta": 0.1, "num_iterations": 1, "max_tokens_per_forward": 300}
            args = GRPOConfig(output_dir=str(folder / name), **options)
            trainer = GRPOTrainer(model, processor, [brevity], args, questions, held_out)
        else:
            trainer = SFTTrainer(
                model, processor, SFTConfig(output_dir=str(folder / name), **common), questions, held_out
            )
        trainer.train(resume and str(folder / name / resume))
        rank, _ = parallel.place()
        torch.save(parallel.whole_weights(model), folder / f"{name}.{rank}.pt")
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(trainer.state.log_history))
    return model


    asked = (model.eval(), processor, held_out, folder / "p.jsonl")
    with mock.patch.object(predictions, "append", stop_at_second(predictions.append)):
        try:
            evaluation.predict(*asked, batch_size=2, progress=False)
        except KeyboardInterrupt:
            pass  # each process has answered one question of its share
    rows = evaluation.predict(*asked, batch_size=2, progress=False)
    (folder / f"rows.{parallel.place()[0]}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    parallel.start()
    run(Path(sys.argv[1]), accumulate=1)
