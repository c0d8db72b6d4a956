"""A checkpoint whose list agrees with its files, and whose files do not belong together, ends in one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from aqa_lib import model as models
from aqa_lib.runtime import checkpoints
from aqa_lib.runtime.checkpoints import CheckpointError
from aqa_lib.training import restoring

SAVED = {"save_strategy": "steps", "save_steps": 1, "beta": 0.0}


def rewrite(name, change):
    """Return a damage that changes a file of JSON or of torch."""

    def damage(checkpoint):
        path = checkpoint / name
        if path.suffix == ".json":
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        elif path.suffix == ".safetensors":
            save_file(change(load_file(path)), path, {"format": "pt"})
        else:
            torch.save(change(torch.load(path, weights_only=True)), path)

    return damage


def put(name, content):
    return lambda checkpoint: (checkpoint / name).write_bytes(content)


def without(found, name):
    return {key: value for key, value in found.items() if key != name}


def transposed(found):
    state = {key: values | {"exp_avg": values["exp_avg"][..., None]} for key, values in found["state"].items()}
    return found | {"state": state}


def later(found):
    return found | {"state": {key: values | {"step": torch.tensor(7.0)} for key, values in found["state"].items()}}


def decayed(found):
    return found | {"param_groups": [group | {"weight_decay": 0.5} for group in found["param_groups"]]}


def fewer(config):
    return config | {"text_config": config["text_config"] | {"num_hidden_layers": 1, "layer_types": None}}


DAMAGES = {
    "trainer_state cut": (put("trainer_state.json", b'{"global_step": 1, "lo'), "trainer_state.json .*JSONDecodeError"),
    "trainer_state a list": (put("trainer_state.json", b"[]"), "trainer_state.json .*TypeError"),
    "trainer_state empty": (put("trainer_state.json", b"{}"), "trainer_state.json .*it is of step 0"),
    "of another step": (rewrite("trainer_state.json", lambda s: s | {"global_step": 9}), "it is of step 9"),
    "step a text": (rewrite("trainer_state.json", lambda s: s | {"global_step": "1"}), "global_step is '1'"),
    "log of texts": (rewrite("trainer_state.json", lambda s: s | {"log_history": ["x"]}), "log_history holds 'x'"),
    "unknown field": (rewrite("trainer_state.json", lambda s: s | {"extra": 1}), "trainer_state.json .*TypeError"),
    "since_log cut": (put("since_log.json", b"{"), "since_log.json .*JSONDecodeError"),
    "since_log a list": (put("since_log.json", b"[]"), "since_log.json .*TypeError"),
    "since_log of texts": (put("since_log.json", b'{"means": {"a": ["b"]}, "cut": 0}'), "since_log.json .*float"),
    "optimizer cut": (put("optimizer.pt", b"PK\3\4"), "optimizer.pt or scheduler.pt does"),
    "optimizer a text": (put("optimizer.pt", b"hello"), "optimizer.pt or scheduler.pt does"),
    "optimizer a list": (rewrite("optimizer.pt", lambda s: [s]), "optimizer.pt or scheduler.pt does"),
    "other moments": (rewrite("optimizer.pt", transposed), "optimizer.pt .*a moment of"),
    "later moments": (rewrite("optimizer.pt", later), "optimizer.pt .*it is of step 7"),
    "schedule empty": (rewrite("scheduler.pt", lambda s: {}), "optimizer.pt or scheduler.pt .*KeyError"),
    "schedule of another step": (rewrite("scheduler.pt", lambda s: s | {"last_epoch": 5}), "scheduler.pt .*of step 5"),
    "schedule of one rate": (
        rewrite("scheduler.pt", lambda s: s | {"base_lrs": [1.0]}),
        "learning rate .1.0. there, .0.001. in this run",
    ),
    "another decay": (rewrite("optimizer.pt", decayed), "weight_decay .0.5. there, .0.0. in this run"),
    "rng cut": (put("rng_state.pth", b""), "rng_state does"),
    "rng a list": (lambda checkpoint: torch.save([], checkpoint / "rng_state.pth"), "rng_state does"),
    "weights cut": (put("model.safetensors", b"\0" * 8), "weights or config.json does"),
    "a weight less": (
        rewrite("model.safetensors", lambda s: without(s, sorted(s)[0])),
        "1 weights are missing",
    ),
    "config a list": (put("config.json", b"[]"), "weights or config.json does"),
    "config of fewer layers": (
        rewrite("config.json", fewer),
        "weights does not belong there .*absent there",
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def saved(runs, train, tmp_path):
    """A run's folder with a checkpoint of one step; made once, and copied."""
    if not (runs / "run").exists():
        train(folder=runs / "run", max_steps=1, **SAVED)
    return shutil.copytree(runs / "run", tmp_path / "run")


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_its_list_agrees_with_is_not_believed(train, saved, damage, message):
    checkpoint = saved / "checkpoint-1"
    damage(checkpoint)
    checkpoints.seal(checkpoint)
    with pytest.raises(CheckpointError, match=message) as error:
        train(folder=saved, resume=True, max_steps=2, **SAVED)
    said = str(error.value)
    assert said.startswith(str(checkpoint)) and "\n" not in said and len(said) < 500
    assert not (saved / "checkpoint-2").exists()


@pytest.fixture
def adapted(model, processor, train, tmp_path):
    """A run that trained adapters, and its model."""
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    policy, _ = models.load(tmp_path / "base", lora={"r": 2})
    train(folder=tmp_path / "lora", policy=policy, max_steps=1, **SAVED)
    return tmp_path / "lora", policy


def test_adapters_among_whole_models_and_the_reverse_are_refused(train, saved, adapted):
    lora, policy = adapted
    whole = "holds a whole model, and this run trains adapters .lora_r.: it is another run's checkpoint"
    few = "holds adapters, and this run trains the whole model: it is another run's checkpoint"
    for run, other, model, message in ((saved, lora, None, few), (lora, saved, policy, whole)):
        moved = shutil.copytree(other / "checkpoint-1", run / "checkpoint-2")
        (run / "checkpoint-1").rename(run / "first")
        for asked in (True, str(moved)):
            with pytest.raises(CheckpointError, match=f"checkpoint-2 {message}"):
                train(folder=run, resume=asked, policy=model, max_steps=3, **SAVED)
        (run / "first").rename(run / "checkpoint-1")
        shutil.rmtree(moved)


def test_nor_do_they_pass_as_the_best(train, saved, adapted, tmp_path):
    lora, policy = adapted
    for other, model, message in ((lora, None, "holds adapters"), (saved, policy, "holds a whole model")):
        trainer = train(folder=tmp_path / f"new-{model is None}", policy=model, max_steps=1, beta=0.0)
        trainer.state.best_model_checkpoint = str(other / "checkpoint-1")
        with pytest.raises(CheckpointError, match=message):
            trainer._load_best_model()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put(restoring.ADAPTER, b"\0" * 4), "adapter_model.safetensors does not belong there"),
        (rewrite(restoring.ADAPTER, lambda s: without(s, sorted(s)[0])), "absent there, .* in this run; 1 differ"),
        (rewrite(restoring.ADAPTER, lambda s: {k: v[:1] for k, v in s.items()}), "in this run; [0-9]+ differ"),
    ],
)
def test_adapters_that_are_cut_or_of_another_rank_are_refused(train, adapted, damage, message):
    lora, policy = adapted
    damage(lora / "checkpoint-1")
    checkpoints.seal(lora / "checkpoint-1")
    with pytest.raises(CheckpointError, match=message):
        train(folder=lora, resume=True, policy=policy, max_steps=2, **SAVED)
