"""Every option of a training is honoured, or refused in a sentence: over all of them, transformers' and TRL's too."""

import inspect
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqa_lib import grpo, scale, sft
from aqa_lib.__main__ import main
from aqa_lib.cli import options, train
from aqa_lib.cli import sft as sft_command
from aqa_lib.grpo import GRPOConfig
from aqa_lib.large import planner
from aqa_lib.runtime.checkpoints import CheckpointError
from aqa_lib.runtime.errors import AqaError
from aqa_lib.runtime.escape import UNPRINTABLE
from aqa_lib.sft import SFTConfig
from aqa_lib.training import base, callbacks, checks, hf_trainer, refusals

# Read by transformers on the way that a training takes here, by its Trainer, its callbacks or the config itself.
THEIRS = """
output_dir max_steps num_train_epochs warmup_steps lr_scheduler_type lr_scheduler_kwargs optim optim_args adam_beta1
adam_beta2 adam_epsilon max_grad_norm full_determinism restore_callback_states_from_checkpoint logging_strategy
logging_steps logging_first_step log_level log_level_replica log_on_each_node disable_tqdm report_to run_name project
trackio_space_id trackio_static_space_id trackio_bucket_id eval_strategy eval_steps eval_delay eval_on_start
save_strategy save_steps save_only_model metric_for_best_model greater_is_better load_best_model_at_end bf16 fp16 tf32
use_cpu ddp_backend ddp_timeout local_rank debug skip_memory_metrics torch_empty_cache_steps do_train do_eval
activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs fsdp_config
""".split()
# What is done whatever they say, and nothing else can be asked for: the last short step is left out, workers stay.
ALWAYS = ["dataloader_drop_last", "dataloader_persistent_workers", "completion_only_loss"]
OURS = "".join(
    inspect.getsource(module) for module in (grpo, sft, base, callbacks, checks, hf_trainer, planner, train, refusals)
)
EVERY = {field.name: (kind, field) for kind in (GRPOConfig, SFTConfig) for field in fields(kind)}


@pytest.fixture
def make(tmp_path):
    """Make a config that says nothing but what is asked for."""
    quiet = {"report_to": "none", "eval_strategy": "no", "use_cpu": True}
    return lambda kind=GRPOConfig, **asked: kind(**{"output_dir": str(tmp_path)} | quiet | asked)


@pytest.mark.parametrize("kind", [GRPOConfig, SFTConfig])
def test_every_option_is_decided_on(kind):
    """A new release's options fail here, until they are read or refused."""
    read = {name for name in EVERY if f"args.{name}" in OURS or f"self.{name}" in OURS or f'"{name}"' in OURS}
    unknown = {field.name for field in fields(kind)} - read - {*THEIRS, *ALWAYS} - set(refusals.NO_EFFECT)
    assert not unknown, f"honour or refuse {', '.join(sorted(unknown))} (training/refusals.py)"


def other(name: str):
    """Give a value of an option's kind that is not its default."""
    field = EVERY[name][1]
    default = refusals._default(field)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return [name] if isinstance(default, list) else f"another {name}"


@pytest.mark.parametrize("name", sorted(set(refusals.NO_EFFECT) & set(EVERY)))
def test_what_would_be_ignored_is_refused_in_a_sentence(name, make):
    with pytest.raises(AqaError, match=rf"^{name} has no effect here: [^\n]+; leave it out\.$"):
        make(EVERY[name][0], **{name: other(name)})


def test_a_default_that_is_spelled_out_is_no_fault(make):
    for name in set(refusals.NO_EFFECT) & set(EVERY):
        kind, field = EVERY[name]
        make(kind, **{name: refusals._default(field)})


@pytest.mark.parametrize("name", sorted(set(refusals.LEAST) & set(EVERY)))
def test_numbers_too_small_are_refused(name, make):
    extra = {"gradient_checkpointing": True} if name == "checkpoint_above" else {}
    with pytest.raises(AqaError, match=rf"^{name} is -2: it must be at least [01]\.$"):
        make(EVERY[name][0], **{name: -2} | extra)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"num_train_epochs": 1}, "num_train_epochs 1 has no effect, since max_steps 1000 decides"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1"),
        ({"max_steps": -1, "num_train_epochs": 0}, "max_steps must be at least 1, or -1"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is nan"),
        ({"audio_cache_gb": -1}, "audio_cache_gb is -1"),
        ({"audio_cache_gb": float("nan")}, "audio_cache_gb is nan"),
        ({"memory": 0.0}, "above 0 GB"),
        ({"adam_beta2": 1.5}, "below 1"),
        ({"seed": 2**32}, "below 2"),
        ({"optim": "galore_adamw", "optim_target_modules": None}, "optim galore_adamw does not work"),
        ({"optim_args": "lr=1"}, "optim_args has no effect with optim adamw_torch"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "no effect without gradient_checkpointing"),
        ({"checkpoint_above": 100}, "checkpoint_above has no effect without gradient_checkpointing"),
        ({"gradient_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}}, "every_n_layers"),
        ({"reference": "streamed", "beta": 0.0}, "reference has no effect without a beta above 0"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, r"fsdp_config has no effect here \(version\)"),
        ({"do_eval": True}, "do_eval has no effect without an eval_strategy"),
        ({"project": "mine"}, "project has no effect without report_to trackio"),
        ({"torch_empty_cache_steps": 5}, "no effect in GRPO"),
    ],
)
def test_what_has_no_effect_beside_other_options_is_refused(asked, reason, make):
    if set(asked) - {field.name for field in fields(GRPOConfig)}:
        pytest.skip(f"transformers {transformers.__version__} knows no {', '.join(asked)}")
    with pytest.raises(AqaError, match=reason):
        make(**asked)


def test_an_answer_is_all_that_sft_learns(make):
    make(SFTConfig, completion_only_loss=True)
    with pytest.raises(AqaError, match="completion_only_loss"):
        make(SFTConfig, completion_only_loss=False)


def test_epochs_train_for_epochs(make, train):
    assert make(max_steps=-1, num_train_epochs=2).num_train_epochs == 2
    trainer = train(max_steps=-1, num_train_epochs=2, per_device_train_batch_size=2, beta=0.0)
    assert trainer.state.global_step == 4 and trainer.state.epoch == 2


def test_a_checkpoint_without_its_optimizer_is_not_resumed(train):
    options = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True, "beta": 0.0}
    train(max_steps=1, **options)
    with pytest.raises(CheckpointError, match="checkpoint-1 was saved with save_only_model"):
        train(max_steps=2, resume=True, **options)


# -- as a shell says it ------------------------------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Parse what is typed after `train` at the tiny scale."""
    monkeypatch.delenv(scale.SHORTER, raising=False)

    def parse(*words, command=train):
        words = ["--output_dir", str(tmp_path), "--report_to", "none", *words]
        parser = options.Parser(words)
        command.add_arguments(parser)
        args = parser.parse_args(words)
        if command is sft_command:
            sft_command.run(args)
        return options.training(args, GRPOConfig, scale.get("tiny"))

    return parse


def test_epochs_that_are_typed_are_trained(typed, monkeypatch):
    assert typed()[1].max_steps == 150 and type(typed()[1].max_steps) is int
    assert (typed("--num_train_epochs", "1")[1].max_steps, typed("--max_steps", "7")[1].max_steps) == (-1, 7)
    with pytest.raises(AqaError, match="--max_steps and --num_train_epochs both say"):
        typed("--num_train_epochs", "1", "--max_steps", "5")
    monkeypatch.setenv(scale.SHORTER, "3")
    with pytest.raises(AqaError, match="AQA_MAX_STEPS and --num_train_epochs both say"):
        typed("--num_train_epochs", "1")


def test_the_part_that_is_held_out_is_the_one_asked_for(typed):
    assert typed()[0].held_out == str(scale.get("tiny").held_out)
    what, _ = typed("--held_out_fraction", "0.25")
    assert (what.held_out, what.held_out_fraction) == (None, 0.25)
    assert typed("--train", "mine.jsonl")[0].held_out_fraction == scale.get("tiny").held_out_fraction
    for value in ("0", "1", "-1", "nan"):
        with pytest.raises(AqaError, match="--held_out_fraction is .*: give a number between 0 and 1"):
            typed("--held_out_fraction", value)
    for other, words in {
        "--held_out": ("--held_out", "mine.jsonl"),
        "--eval_strategy no": ("--eval_strategy", "no"),
    }.items():
        with pytest.raises(AqaError, match=f"--held_out_fraction has no effect with {other}"):
            typed("--held_out_fraction", "0.5", *words)


def test_what_only_another_training_reads_is_refused(typed):
    with pytest.raises(AqaError, match="--train_parts has no effect with --lora_r"):
        typed("--lora_r", "4", "--train_parts", "projector")
    with pytest.raises(AqaError, match="--rewards has no effect in sft"):
        typed("--rewards", "accuracy", command=sft_command)
    assert typed("--train_parts", "projector")[0].train_parts == ["projector"]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed here")
@pytest.mark.parametrize("asked", ["wandb", ["tensorboard", "wandb"]])
def test_a_program_to_report_to_that_is_not_installed_is_named(make, asked):
    with pytest.raises(AqaError, match="report_to wandb needs wandb, which is not installed; pip install wandb, or"):
        make(report_to=asked)


def test_arguments_that_no_schedule_takes_are_named(train):
    with pytest.raises(AqaError, match=r"lr_scheduler_kwargs .* do not suit .*unexpected keyword argument"):
        train(max_steps=1, lr_scheduler_kwargs={"a": 1})


HOSTILE = ["", "nan", "-1", "0", "1e999", "x", "[]", "{}", "None", "none", "true", "../..", "1" * 400, "9" * 19]
HOSTILE += ["\ud800", "\N{DOG}", "-", "1.5", '{"a": 1}', "a\0b", "\x1b[2J", "a b", "'", "%s", "{0}"]


@pytest.fixture(scope="module")
def parsers():
    """Each command's parser with all its options, made once: it takes longer than a run of it here."""
    made = {}
    for command in ("train", "sft"):
        made[command] = options.Parser(prog=f"python -m aqa_lib {command}", asked=[])
        import_module(f"aqa_lib.cli.{command}").add_arguments(made[command])
    return made


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_option_is_taken_or_refused_in_a_sentence(parsers, tmp_path_factory, capsys, data):
    """Up to where the questions would be read. No traceback, ever."""
    command = data.draw(st.sampled_from(["train", "sft"]))
    taken = [action.option_strings[0] for action in parsers[command]._actions if action.option_strings]
    names = data.draw(st.lists(st.sampled_from([o for o in taken if "help" not in o]), min_size=1, max_size=3))
    words = [f"{name}={data.draw(st.sampled_from(HOSTILE) | st.text(max_size=4))}" for name in names]
    folder = tmp_path_factory.getbasetemp() / "nothing"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_train", lambda *args: None)
        patch.setattr(options, "Parser", lambda **kwargs: parsers[command])
        patch.setattr(f"aqa_lib.cli.{command}.add_arguments", lambda parser: None)
        code = main([command, f"--output_dir={folder}", *words])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(said)) in ((0, 0), (2, 1)), (words, code, said)
    assert not any(UNPRINTABLE.search(line) for line in said)
    assert not folder.exists() or not any(folder.iterdir())
