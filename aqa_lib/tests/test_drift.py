"""What we rely on in other libraries, tested by itself: after an upgrade this file says what changed, and who uses it.

The rest of the suite would fail too, but by a wrong number or a long traceback.
"""

import inspect
from dataclasses import fields

import accelerate
import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
import trl
import trl.rewards
from transformers.audio_utils import mel_filter_bank
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from aqa_lib import model as models
from aqa_lib import prompt, sft
from aqa_lib.dataset import Question

Trainer = transformers.Trainer
SIGNATURES = [
    # what, the parameters that we pass or override with, the module that does
    (Trainer.__init__, "model args train_dataset eval_dataset processing_class callbacks", "trainer"),
    (Trainer.train, "resume_from_checkpoint", "training"),
    (Trainer.training_step, "model inputs num_items_in_batch", "trainer, sft"),
    (Trainer.compute_loss, "model inputs return_outputs num_items_in_batch", "sft"),
    (Trainer.evaluate, "eval_dataset ignore_keys metric_key_prefix", "training"),
    (Trainer.log, "logs start_time", "training"),
    (Trainer.save_model, "output_dir _internal_call", "training"),
    (Trainer.create_optimizer, "model", "training"),
    (Trainer.get_train_dataloader, "", "training"),
    (Trainer.floating_point_ops, "inputs", "training"),
    (Trainer.get_decay_parameter_names, "model", "training"),
    (Trainer.get_optimizer_cls_and_kwargs, "args model", "training"),
    (Trainer.pop_callback, "callback", "trainer"),
    (Trainer.remove_callback, "callback", "training"),
    (Trainer._save_checkpoint, "model trial", "training: saving aside"),
    (Trainer._get_output_dir, "trial", "training: saving aside"),
    (Trainer._load_from_checkpoint, "resume_from_checkpoint model", "training: Qwen2-Audio's names"),
    (Trainer._clip_grad_norm, "model", "training: the norm of what is shared out"),
    (Trainer._load_best_model, "", "training: Qwen2-Audio's names"),
    (transformers.TrainerState.save_to_json, "json_path", "training: saving aside"),
    (transformers.HfArgumentParser.parse_args_into_dataclasses, "args return_remaining_strings", "__main__"),
    (transformers.Cache.__init__, "layers", "rollout"),
    (transformers.Cache.batch_select_indices, "indices", "rollout"),
    (transformers.cache_utils.DynamicLayer.update, "key_states value_states", "rollout.Room"),
    (sdpa_attention_forward, "module query key value attention_mask", "attention"),
    (Qwen2Model.forward, "inputs_embeds attention_mask position_ids past_key_values use_cache", "model.backbone"),
    (mel_filter_bank, "num_frequency_bins num_mel_filters norm mel_scale", "audio"),
    (trl.SFTTrainer.__init__, "model args data_collator train_dataset eval_dataset processing_class callbacks", "sft"),
    (peft.PeftModel.from_pretrained, "model model_id is_trainable", "model.load"),
    (peft.LoraConfig.__init__, "r lora_alpha target_modules task_type", "model.load"),
    (datasets.Audio.__init__, "decode", "dataset.read_hub"),
    (datasets.Dataset.cast_column, "column feature", "dataset.read_hub"),
    (accelerate.Accelerator.backward, "loss", "trainer"),
    (accelerate.Accelerator.unwrap_model, "model", "trainer"),
    (torch.nn.utils.get_total_norm, "tensors", "training"),
    (torch.optim.Optimizer.register_step_pre_hook, "hook", "training"),
]


@pytest.mark.parametrize(("function", "names", "where"), SIGNATURES, ids=[row[0].__qualname__ for row in SIGNATURES])
def test_signature(function, names, where):
    found = inspect.signature(function).parameters
    anything = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in found.values())
    lost = [name for name in names.split() if name not in found and not anything]
    assert not lost, (
        f"{function.__module__}.{function.__qualname__} no longer takes {', '.join(lost)}, which aqa_lib's {where} "
        f"relies on; it takes {', '.join(found)}"
    )


def test_options_that_the_configs_set_are_there():
    for config, names in {
        transformers.TrainingArguments: "use_cpu data_seed save_total_limit metric_for_best_model eval_on_start "
        "logging_first_step hub_token report_to max_grad_norm dataloader_prefetch_factor save_only_model",
        trl.SFTConfig: "dataset_kwargs loss_type " + " ".join(sft.WITHOUT_EFFECT),
    }.items():
        lost = set(names.split()) - {f.name for f in fields(config)}
        assert not lost, f"{config.__name__} has no {', '.join(lost)} any more: trainer.py and sft.py set or refuse it"


def test_trainer_saves_into_the_folder_that_it_is_told(tmp_path):
    """`training` writes checkpoints aside by overriding `_get_output_dir`."""
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "self._get_output_dir(" in source, "Trainer._save_checkpoint asks elsewhere where to save: atomic no more"
    for name in ("save_model(", "_save_optimizer_and_scheduler(", "_save_rng_state(", "save_to_json("):
        assert name in source, f"Trainer._save_checkpoint no longer calls {name}): is a resumed run still the same?"


def test_trainer_loads_no_pickle():
    source = inspect.getsource(transformers.trainer)
    unsafe = [text[:80] for text in source.split("torch.load(")[1:] if "weights_only=True" not in text[:300]]
    assert not unsafe, f"transformers.trainer reads with torch.load and not weights_only: {unsafe}"


def test_options_are_printed_without_tokens():
    args = transformers.TrainingArguments(hub_token="hf_secret", report_to="none", use_cpu=True)
    assert "hf_secret" not in args.to_json_string(), "TrainingArguments prints hub_token: run.json would hold it"


def test_the_model_has_the_parts_that_are_reached_for(model):
    tower = model.model.audio_tower
    for holder, names in [
        (model, ("lm_head", "model", "generation_config")),
        (model.model, ("audio_tower", "multi_modal_projector", "language_model")),
        (tower, ("conv1", "conv2", "embed_positions", "layers", "avg_pooler", "layer_norm", "dropout")),
        (model.config, ("audio_token_id", "audio_config", "text_config")),
    ]:
        lost = [name for name in names if not hasattr(holder, name)]
        assert not lost, f"{type(holder).__name__} has no {', '.join(lost)}: model.parts and model.encode_audio use it"
    assert model.lm_head.weight is not model.get_input_embeddings().weight, "the head is tied again, as in 5.10"
    first, second = list(inspect.signature(type(tower.layers[0]).forward).parameters)[1:3]
    assert (first, second) == ("hidden_states", "attention_mask"), "encode_audio calls layers with (hidden, mask)"


def test_the_template_renders_a_clip_as_one_audio_token(processor):
    question = Question("1", None, "What?", ("a", "b"), "a")
    text = processor.apply_chat_template(prompt.messages(question, 2), tokenize=False, add_generation_prompt=True)
    assert text.count(processor.audio_token) == 1, f"the chat template renders {text!r}"
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n"), text


def test_the_processor_makes_the_same_mel(processor):
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    made = processor.feature_extractor(wave, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    assert {"input_features", "attention_mask"} <= set(made), "WhisperFeatureExtractor names its outputs otherwise"
    assert int(made["attention_mask"].sum()) == 100, "its mask no longer counts frames of 10 ms"


def test_saved_weights_come_back_with_a_list_of_the_missing(model, tmp_path):
    model.save_pretrained(tmp_path)
    options = {"output_loading_info": True, "trust_remote_code": False}
    found = transformers.AutoModelForMultimodalLM.from_pretrained(tmp_path, **options)[1]
    assert not found["missing_keys"], "a saved Qwen2-Audio is not found again under its names"
    assert (tmp_path / "model.safetensors").exists(), "weights are no longer saved as safetensors"


def test_trls_rewards_have_our_signature():
    for name in ("think_format_reward", "accuracy_reward"):
        found = getattr(trl.rewards, name, None)
        assert found, f"trl.rewards has no {name} any more; the README says that its rewards plug in"
        assert "completions" in inspect.signature(found).parameters, f"trl.rewards.{name} is called otherwise"


def test_a_models_own_code_is_not_run(tmp_path):
    """A folder that brings Python: refused in a sentence, and nothing of it runs."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}'
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\n")
    with pytest.raises(models.ModelError, match="no model could be loaded"):
        models.load(tmp_path)
    assert not (tmp_path / "ran").exists()
