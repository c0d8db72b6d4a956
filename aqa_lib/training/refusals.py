"""Refuse options that would change nothing here, and numbers that mean nothing: every option is honoured or refused.

`[refusals] -> training.checks`. The configs inherit over a hundred options of transformers and TRL, written for other
trainers. Whatever a person sets and this package does not read ends in a sentence, before transformers looks at it;
tests/training/test_refusals.py goes over all of them, so that a new release's options get decided on too.
"""

import math
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields

from transformers.integrations import integration_utils

from ..runtime.errors import AqaError

SCORED = "held-out questions are answered, and their replies scored"
ORDER = "the order of the questions depends only on the seed, so that GRPO and SFT see the same"
PARTS = "the parts of the model are run one by one, never its own forward"
AVERAGED = "gradients are averaged once per step, without DistributedDataParallel"
TEXT = "questions are encoded with their clips, as the model's own template says"
UPLOAD = "nothing is uploaded; when the run is done, send its folder with `hf upload`"
STATES = "a resumed run continues exactly where it stopped"

NO_EFFECT = {  # option: why any other value than its default would change nothing, or break the run
    **dict.fromkeys(("batch_eval_metrics", "include_for_metrics", "prediction_loss_only", "label_names"), SCORED),
    **dict.fromkeys(("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"), SCORED),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), f"{SCORED} in the precision of training"),
    **dict.fromkeys(("eval_packing", "do_predict"), SCORED),
    **dict.fromkeys(("train_sampling_strategy", "length_column_name", "shuffle_dataset", "group_by_length"), ORDER),
    **dict.fromkeys(("accelerator_config", "dataloader_in_order", "dataloader_multiprocessing_context"), ORDER),
    "auto_find_batch_size": "it would change what a step learns from; set per_device_train_batch_size",
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cache"), PARTS),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config", "neftune_noise_alpha", "activation_offloading"), PARTS),
    **dict.fromkeys(("ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"), AVERAGED),
    "ddp_static_graph": AVERAGED,
    "average_tokens_across_devices": "the loss is always the mean over all devices",
    **dict.fromkeys(("deepspeed", "parallelism_config"), "models are sharded only by --fsdp"),
    **dict.fromkeys(("packing", "packing_strategy", "padding_free", "pad_to_multiple_of", "truncation_mode"), TEXT),
    **dict.fromkeys(("chat_template_path", "eos_token", "pad_token", "dataset_text_field", "dataset_num_proc"), TEXT),
    **dict.fromkeys(("max_length", "dataset_kwargs", "remove_unused_columns"), TEXT),
    "assistant_only_loss": "only the answer is learned in any case",
    "label_smoothing_factor": "the loss has no smoothing",
    "router_aux_loss_coef": "no model here has experts",
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "the model is already loaded, by --model"),
    "optim_target_modules": "the optimizers that need it do not work here",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push"), UPLOAD),
    **dict.fromkeys(("hub_revision", "hub_token"), UPLOAD),
    "resume_from_checkpoint": "give --resume, or train(resume_from_checkpoint=True)",
    "ignore_data_skip": STATES,
    "save_on_each_node": "one process saves for all",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint in any case",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "include_num_input_tokens_seen": "num_tokens is always logged",
}
NEEDS = {  # option: what else must be asked for, in words and as a check
    "activation_checkpointing_kwargs": ("gradient_checkpointing", lambda args: _recomputes(args)),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", lambda args: _recomputes(args)),
    "checkpoint_above": ("gradient_checkpointing", lambda args: _recomputes(args)),
    "fsdp_config": ("fsdp", lambda args: args.fsdp),
    "reference": ("a beta above 0", lambda args: args.beta),
    "do_eval": ("an eval_strategy", lambda args: args.eval_strategy != "no"),
    **dict.fromkeys(
        ("trackio_space_id", "trackio_static_space_id", "trackio_bucket_id", "project"),
        ("report_to trackio", lambda args: "trackio" in (args.report_to or "") or args.report_to == "all"),
    ),
}
LEAST = {  # option: its smallest value
    **dict.fromkeys(("audio_cache_gb", "learning_rate", "audio_tower_learning_rate", "projector_learning_rate"), 0),
    **dict.fromkeys(("max_grad_norm", "weight_decay", "warmup_steps", "adam_beta1", "adam_beta2", "adam_epsilon"), 0),
    **dict.fromkeys(("top_k", "epsilon_high", "seed", "data_seed", "dataloader_num_workers", "eval_delay"), 0),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("save_total_limit", "torch_empty_cache_steps"), 1),
    "checkpoint_above": 0,
}
OWN_GROUPS = ("galore", "apollo", "lomo", "adalomo")  # optimizers that make the parameter groups themselves
NO_ARGS = ("adamw_torch", "adamw_torch_fused", "adafactor")  # optimizers for which transformers reads no optim_args


def refuse_options(args) -> None:
    """Raise AqaError for the first option of a config that would be ignored or means nothing.

    It is called before transformers' `__post_init__`, which fills in options.
    """
    refuse_not_finite(args)
    refuse_reports(args.report_to)
    if not str(args.output_dir or "").strip():
        raise AqaError("output_dir is empty: name a folder.")
    for option in fields(args):
        value = getattr(args, option.name)
        if value in (None, "", _default(option)) or (value is False and _default(option) == "no"):
            continue
        if reason := NO_EFFECT.get(option.name):
            raise AqaError(f"{option.name} has no effect here: {reason}; leave it out.")
        other, there = NEEDS.get(option.name, ("", lambda args: True))
        if not there(args):
            raise AqaError(f"{option.name} has no effect without {other}; set both, or leave it out.")
        if _number(value) and value < LEAST.get(option.name, -math.inf):
            raise AqaError(f"{option.name} is {value}: it must be at least {LEAST[option.name]}.")
    for wrong, sentence in _together(args):
        if wrong:
            raise AqaError(sentence)


def refuse_not_finite(args) -> None:
    """Raise AqaError for an option that is NaN or infinite: it would make the weights so."""
    for option in fields(args):
        value = getattr(args, option.name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise AqaError(f"{option.name} is {number}: give a finite number.")


def refuse_reports(asked: str | list[str] | None) -> None:
    """Raise AqaError for a program to report to that is unknown or not installed."""
    known, there = integration_utils.INTEGRATION_TO_CALLBACK, integration_utils.get_available_reporting_integrations()
    for name in asked if isinstance(asked, list) else [asked]:
        if name is None or name in ("none", "all"):
            continue
        if name not in known:
            raise AqaError(f"report_to {name!r} is unknown; choose none, all, {', '.join(sorted(known))}.")
        if name not in there:
            raise AqaError(
                f"report_to {name} needs {name}, which is not installed; pip install {name}, or choose none."
            )


def refuse_metric(args, measured: Iterable[str]) -> None:
    """Raise AqaError if checkpoints would be ranked by a metric that is none of the `measured`."""
    asked = (args.metric_for_best_model or "").removeprefix("eval_")
    ranks = args.load_best_model_at_end or args.save_strategy == "best" or "plateau" in str(args.lr_scheduler_type)
    if ranks and asked not in (known := sorted(measured)):
        raise AqaError(f"metric_for_best_model {asked!r} is not measured here; choose {', '.join(known)}.")


def _together(args) -> list[tuple[bool, str]]:
    """List the options that are wrong only in combination."""
    epochs = {option.name: _default(option) for option in fields(args)}["num_train_epochs"]
    optim, kwargs = str(getattr(args.optim, "value", args.optim)), _kwargs(args)
    odd = sorted(set(args.fsdp_config or ()) - {"cpu_offload"}) if isinstance(args.fsdp_config, dict) else []
    return [
        (
            args.max_steps > 0 and args.num_train_epochs != epochs,
            f"num_train_epochs {args.num_train_epochs:g} has no effect, since max_steps {args.max_steps} decides; set "
            "max_steps to -1 to train for epochs.",
        ),
        (
            args.max_steps < 1 and not (args.max_steps == -1 and args.num_train_epochs > 0),
            "max_steps must be at least 1, or -1 with num_train_epochs above 0.",
        ),
        (args.memory is not None and args.memory <= 0, f"memory is {args.memory}: it must be above 0 GB."),
        (max(args.adam_beta1, args.adam_beta2) >= 1, "adam_beta1 and adam_beta2 must be below 1."),
        (max(args.seed, args.data_seed or 0) >= 2**32, "seed and data_seed must be below 2**32."),
        (optim.startswith(OWN_GROUPS), f"optim {optim} does not work with one learning rate per part; choose another."),
        (
            bool(args.optim_args) and (optim in NO_ARGS or args.master not in ("auto", "fp32")),
            f"optim_args has no effect with optim {optim}, master {args.master}; leave it out.",
        ),
        ("every_n_layers" in kwargs, "every_n_layers has no effect here: all layers in a pass recompute, or none."),
        (getattr(args, "completion_only_loss", None) is False, "completion_only_loss: only the answer is learned."),
        (
            bool(args.torch_empty_cache_steps) and hasattr(args, "num_generations"),
            "torch_empty_cache_steps has no effect in GRPO; leave it out.",
        ),
        (isinstance(args.fsdp_config, str), "fsdp_config has no effect as a file; leave it out."),
        (bool(odd), f"fsdp_config has no effect here ({', '.join(odd)}): layers are sharded one by one; leave it out."),
    ]


def _default(option: Field):
    return option.default if option.default_factory is MISSING else option.default_factory()


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _recomputes(args) -> bool:
    return bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", None))


def _kwargs(args) -> str:
    return f"{getattr(args, 'activation_checkpointing_kwargs', None)} {args.gradient_checkpointing_kwargs}"
