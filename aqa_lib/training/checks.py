"""Refuse a run that cannot work before it starts, and settle what the machine decides.

`large.planner, runtime -> [checks] -> training.base`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..dataset import Question
from ..large import masters, planner
from ..model import half_precision
from ..runtime import faults
from ..runtime.errors import AqaError
from .hf_trainer import refuse_accelerates_fsdp
from .refusals import refuse_options


def fit_machine(args) -> None:
    """Set what the machine decides in a config before transformers sees it; without evaluation, rank no checkpoints.

    Raises AqaError for an option that would be ignored or means nothing.
    """
    refuse_options(args)
    # without a GPU, transformers refuses bf16 unless it is told to use the CPU
    args.use_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.bf16 and half_precision() == torch.float16:
        args.bf16, args.fp16 = False, True
    if args.eval_strategy == "no":
        args.eval_on_start = args.load_best_model_at_end = False


def check_run(
    model: nn.Module,
    args,
    train_dataset: Sequence[Question],
    eval_dataset: Sequence[Question] | None,
    needs_answers: bool = True,
) -> None:
    """Refuse a run that cannot work, and settle how trained weights are kept.

    needs_answers: whether the run learns from the training questions' answers. The held-out ones' are always needed.
    """
    faults.check_writable(args.output_dir)
    if not eval_dataset and args.eval_strategy != "no":
        raise AqaError(
            'no held-out questions to select the best checkpoint; pass eval_dataset, or set eval_strategy="no".'
        )
    if len(train_dataset) == 0:
        raise AqaError("there are no questions to train on; check the question file.")
    if needs_answers and (withheld := [q.id for q in train_dataset if not q.answer]):
        raise AqaError(
            f"{len(withheld)} questions have no answer, {withheld[0]} among them; training needs one, unless all "
            "rewards do without (majority, format)."
        )
    if withheld := [q.id for q in eval_dataset or () if not q.answer]:
        raise AqaError(
            f"{len(withheld)} held-out questions have no answer, {withheld[0]} among them; give some that do by "
            '--held_out, or set eval_strategy="no".'
        )
    check_fsdp(model, args)
    keep_masters(model, args)


def check_fsdp(model: nn.Module, args) -> None:
    """Refuse what a sharded model cannot do, and sharding that is not ours."""
    refuse_accelerates_fsdp(args)
    if not args.fsdp:
        return
    for refused, sentence in [
        (
            hasattr(model, "disable_adapter"),
            "--fsdp supports full fine-tuning only; LoRA adapters fit on one GPU, so drop --fsdp.",
        ),
        (args.fp16, "--fsdp computes in bfloat16 or float32, not in float16; set bf16, or drop --fsdp."),
        (getattr(args, "reference", "") == "streamed", "--fsdp shards the reference too; drop --reference streamed."),
        (args.fsdp_config.get("cpu_offload"), "--fsdp keeps weights on the GPUs; drop cpu_offload."),
        (args.world_size == 1, "--fsdp shards a model among processes; start several with torchrun."),
    ]:
        if refused:
            raise AqaError(sentence)


def keep_masters(model: nn.Module, args) -> None:
    """Settle what memory decides, and convert trained low-precision weights to float32 if that is how they are kept."""
    low = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if args.master != "auto" and (reason := masters.refusal(args.master, args.device, args.fsdp)):
        raise AqaError(reason)
    planner.settle(planner.ModelSizes.of(model), args)
    if args.master != "fp32":
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        if trained != {torch.bfloat16}:
            names = " and ".join(sorted(map(str, trained)))
            raise AqaError(f"master {args.master} is for bfloat16 weights, not {names}; load them as bfloat16.")
        if not args.optim.startswith("adamw_torch"):
            raise AqaError(f"master {args.master} brings its own AdamW; leave optim out, or set master to fp32.")
    elif low and not (args.bf16 or args.fp16):
        raise AqaError(
            f"trained weights are {low[0].dtype}, which rounds nearly every small update away; set bf16 (they are then "
            "kept in float32 and computed with in bfloat16), or load them as float32."
        )
    else:
        for parameter in low:
            parameter.data = parameter.data.float()
