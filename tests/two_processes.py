"""What each process of test_parallel.py does: `torchrun --nproc_per_node 2 two_processes.py FOLDER`.

In FOLDER/two each process holds the model; in FOLDER/fsdp it is sharded, and FOLDER/resumed resumes that.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
from torch.distributed.tensor import DTensor

from aqa_lib import dataset, evaluation
from aqa_lib.grpo import GRPOConfig, GRPOTrainer
from aqa_lib.large import fsdp
from aqa_lib.runtime import distributed, files
from aqa_lib.sft import SFTConfig, SFTTrainer
from aqa_lib.tiny import pretrain


def brevity(prompts, completions, **columns):
    """Reward short answers."""
    return [-float(len(completion[0]["content"])) for completion in completions]


def stop_at_second(append):
    """Write one row as usual, and stop at the next."""
    written = []

    def once(file, row):
        if written:
            raise KeyboardInterrupt
        written.append(append(file, row))

    return once


def counted(in_step, spares):
    """Count the passes that are run for the sake of the other process alone."""

    def count(*args):
        for item, counts in in_step(*args):
            spares.append(not counts)
            yield item, counts

    return count


def train(folder: Path, accumulate: int = 1, names=("grpo", "sft"), resume: Path | None = None, **changes):
    """Train three steps by GRPO and SFT; leave what was found in `folder`. Returns the last model."""
    processor = pretrain.build_processor()
    questions = dataset.read(folder.parent / "data" / "train.jsonl")
    held_out = dataset.read(folder.parent / "data" / "val.jsonl")
    common = {
        "max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "max_completion_length": 5,
        "gradient_accumulation_steps": accumulate, "logging_steps": 3, "logging_first_step": False, "eval_steps": 3,
        "save_steps": 3, "report_to": "none", "disable_tqdm": True,
    } | changes  # fmt: skip
    rank, spares = distributed.rank_and_world_size()[0], []
    for name in names:
        model = pretrain.build_model(processor, seed=1)
        model.generation_config.eos_token_id = [*range(0, 512, 4)]  # so answers end at different steps
        if name == "grpo":
            options = common | {"num_generations": 3, "beta": 0.1, "num_iterations": 1, "max_tokens_per_forward": 300}
            args = GRPOConfig(output_dir=str(folder / name), **options)
            trainer = GRPOTrainer(model, processor, [brevity], args, questions, held_out)
        else:
            trainer = SFTTrainer(
                model, processor, SFTConfig(output_dir=str(folder / name), **common), questions, held_out
            )
        with mock.patch.object(distributed, "lockstep", counted(distributed.lockstep, spares)):
            trainer.train(resume and str(resume / name / "checkpoint-2"))
        weights = fsdp.full_weights(model) if common.get("fsdp") else model.state_dict()
        torch.save(weights, folder / f"{name}.{rank}.pt")
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(trainer.state.log_history))
    held = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    found = {"bytes": sum(part.nbytes for part in held), "spares": sum(spares)}
    (folder / f"found.{rank}.json").write_text(json.dumps(found))
    return model, processor, held_out


def evaluate(folder: Path, model, processor, held_out) -> None:
    """Answer questions, be stopped, and resume."""
    asked = (model.eval(), processor, held_out, folder / "p.jsonl")
    with mock.patch.object(files, "append", stop_at_second(files.append)):
        try:
            evaluation.predict(*asked, batch_size=2, progress=False)
        except KeyboardInterrupt:
            pass  # each process has answered one question of its share
    rows = evaluation.predict(*asked, batch_size=2, progress=False)
    (folder / f"rows.{distributed.rank_and_world_size()[0]}.json").write_text(json.dumps(rows))


def both(folder: Path, accumulate: int) -> None:
    evaluate(folder, *train(folder, accumulate))


if __name__ == "__main__":
    distributed.start()
    both(Path(sys.argv[1]) / "two", 1)
    kept = {"fsdp": True, "save_steps": 2, "load_best_model_at_end": False}
    train(Path(sys.argv[1]) / "fsdp", **kept)
    train(Path(sys.argv[1]) / "resumed", names=["grpo"], resume=Path(sys.argv[1]) / "fsdp", **kept)
