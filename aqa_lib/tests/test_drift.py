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
from peft.tuners.lora.layer import Linear as LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils._pytree import tree_map_only
from transformers.audio_utils import mel_filter_bank
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2Model

from aqa_lib import attention, prompt
from aqa_lib import model as models
from aqa_lib.dataset import Question

Trainer = transformers.Trainer
SIGNATURES = [
    # what, the parameters that we pass or override with, the module that does
    (Trainer.__init__, "model args train_dataset eval_dataset processing_class callbacks", "training.base"),
    (Trainer.train, "resume_from_checkpoint", "training.base"),
    (Trainer.training_step, "model inputs num_items_in_batch", "grpo, sft"),
    (Trainer.compute_loss, "model inputs return_outputs num_items_in_batch", "sft"),
    (Trainer.evaluate, "eval_dataset ignore_keys metric_key_prefix", "training.base"),
    (Trainer.log, "logs start_time", "training.base"),
    (Trainer.create_optimizer, "model", "training.base"),
    (Trainer.get_train_dataloader, "", "training.base"),
    (Trainer.get_decay_parameter_names, "model", "training.base"),
    (Trainer.get_optimizer_cls_and_kwargs, "args model", "training.base"),
    (Trainer.remove_callback, "callback", "training.base"),
    (Trainer.pop_callback, "callback", "training.hf_trainer"),
    (Trainer.create_accelerator_and_postprocess, "", "training.hf_trainer: no DistributedDataParallel"),
    (accelerate.Accelerator.prepare_model, "model evaluation_mode", "training.hf_trainer: no DistributedDataParallel"),
    (Trainer._move_model_to_device, "model device", "training.hf_trainer: FSDP"),
    (Trainer._save_checkpoint, "model trial", "training.hf_trainer: whole checkpoints"),
    (Trainer._get_output_dir, "trial", "training.hf_trainer: whole checkpoints"),
    (Trainer.save_model, "output_dir _internal_call", "training.hf_trainer: options as JSON"),
    (Trainer._save, "output_dir state_dict", "training.hf_trainer: FSDP"),
    (Trainer._save_optimizer_and_scheduler, "output_dir", "training.hf_trainer: FSDP"),
    (Trainer._load_optimizer_and_scheduler, "checkpoint", "training.hf_trainer: FSDP"),
    (Trainer._load_rng_state, "checkpoint", "training.hf_trainer: a broken file is named"),
    (Trainer._load_from_checkpoint, "resume_from_checkpoint model", "training.hf_trainer: Qwen2-Audio's names"),
    (Trainer._load_best_model, "", "training.hf_trainer: Qwen2-Audio's names"),
    (Trainer._clip_grad_norm, "model", "training.hf_trainer: the norm of sharded gradients"),
    (Trainer.floating_point_ops, "inputs", "training.hf_trainer"),
    (transformers.TrainerState.save_to_json, "json_path", "training.hf_trainer: whole checkpoints"),
    (transformers.Cache.__init__, "layers", "rollout"),
    (transformers.Cache.batch_select_indices, "indices", "rollout"),
    (DynamicLayer.update, "key_states value_states", "rollout.KVCacheLayer"),
    (DynamicLayer.lazy_initialization, "key_states value_states", "rollout.KVCacheLayer"),
    (DynamicLayer.get_seq_length, "", "rollout.KVCacheLayer"),
    (transformers.AttentionInterface.register, "key value", "attention"),
    (transformers.AttentionMaskInterface.register, "key value", "attention"),
    (sdpa_attention_forward, "module query key value attention_mask", "attention"),
    (sdpa_mask, "q_length kv_length attention_mask", "attention"),
    (Qwen2Model.set_attn_implementation, "attn_implementation", "model.use_own_attention"),
    (Qwen2Model.forward, "inputs_embeds attention_mask position_ids past_key_values use_cache", "model.backbone"),
    (mel_filter_bank, "num_frequency_bins num_mel_filters norm mel_scale", "audio"),
    (trl.SFTTrainer.__init__, "model args data_collator train_dataset eval_dataset processing_class callbacks", "sft"),
    (peft.PeftModel.from_pretrained, "model model_id is_trainable", "model.load"),
    (peft.LoraConfig.__init__, "r lora_alpha target_modules task_type", "model.load"),
    (dequantize_module_weight, "module", "course.weights"),
    (LoraLayer.get_delta_weight, "adapter", "course.weights"),
    (datasets.Audio.__init__, "decode", "dataset.read_hub"),
    (datasets.Dataset.cast_column, "column feature", "dataset.read_hub"),
    (accelerate.Accelerator.backward, "loss", "grpo"),
    (accelerate.Accelerator.unwrap_model, "model", "grpo"),
    (torch.nn.utils.get_total_norm, "tensors", "training.base"),
    (torch.optim.Optimizer.register_step_pre_hook, "hook", "training.base"),
    (torch.optim.Optimizer.register_state_dict_post_hook, "hook", "training.base: FSDP"),
    (fully_shard, "module mesh reshard_after_forward mp_policy ignored_params", "large.fsdp"),
    (register_fsdp_forward_method, "module method_name", "large.fsdp"),
    (tree_map_only, "type_or_types_or_pred func tree", "large.fsdp"),
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
        trl.SFTConfig: "dataset_kwargs loss_type",
    }.items():
        lost = set(names.split()) - {f.name for f in fields(config)}
        assert not lost, f"{config.__name__} has no {', '.join(lost)} any more: grpo.py and sft.py set or refuse it"


def test_trainer_saves_into_the_folder_that_it_is_told(tmp_path):
    """`training.hf_trainer` writes checkpoints aside by overriding `_get_output_dir`."""
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "self._get_output_dir(" in source, "Trainer._save_checkpoint asks elsewhere where to save: atomic no more"
    for name in ("save_model(", "_save_optimizer_and_scheduler(", "_save_rng_state(", "save_to_json("):
        assert name in source, f"Trainer._save_checkpoint no longer calls {name}): is a resumed run still the same?"


@pytest.fixture
def trainer(tmp_path):
    return Trainer(torch.nn.Linear(1, 1), transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


def test_trainer_wraps_no_model_that_is_prepared_for_evaluation(trainer):
    """`training.hf_trainer` averages gradients itself: DistributedDataParallel would average them a second time."""
    source = inspect.getsource(accelerate.Accelerator.prepare_model)
    assert "not evaluation_mode" in source, "Accelerator.prepare_model asks otherwise whether to wrap in DDP"
    assert "prepare_model(" in inspect.getsource(Trainer) + inspect.getsource(accelerate.Accelerator)
    assert trainer.accelerator is not None, "Trainer.__init__ no longer makes its accelerator by the method we override"
    assert "create_accelerator_and_postprocess()" in inspect.getsource(Trainer.__init__)


def test_one_gpu_is_what_n_gpu_says(trainer):
    """`training.hf_trainer` writes `_n_gpu`: with 2 cards in one process transformers would use DataParallel."""
    trainer.args._n_gpu = 1
    assert trainer.args.n_gpu == 1, "TrainingArguments.n_gpu no longer reads _n_gpu"
    assert "args.n_gpu > 1" in inspect.getsource(Trainer), "DataParallel is chosen by something else than args.n_gpu"


def test_accelerates_fsdp_is_off_without_plugin_arguments(trainer):
    """`training.hf_trainer` sets `fsdp_plugin_args` to None, and refuses accelerate's own switch."""
    assert trainer.args.fsdp_plugin_args is None, "TrainingArguments makes an FSDP plugin though nobody asked for FSDP"
    assert "if self.args.fsdp_plugin_args is not None" in inspect.getsource(transformers.trainer)
    assert "ACCELERATE_USE_FSDP" in inspect.getsource(accelerate.accelerator), "accelerate's switch has another name"


def test_who_divides_the_loss_by_the_accumulation(trainer):
    """`training.base` sets `model_accepts_loss_kwargs`: a loss that is divided twice would train at a fraction."""
    assert hasattr(trainer, "model_accepts_loss_kwargs"), "Trainer.__init__ decides elsewhere who averages the loss"
    source = inspect.getsource(Trainer.training_step)
    assert "model_accepts_loss_kwargs" in source and "loss / self.current_gradient_accumulation_steps" in source
    assert "self.current_gradient_accumulation_steps = " in inspect.getsource(Trainer)


def test_the_files_of_a_checkpoint():
    """`training.hf_trainer` reads the optimizer's and the schedule's, and deletes the pickled options."""
    names = {"OPTIMIZER_NAME": "optimizer.pt", "SCHEDULER_NAME": "scheduler.pt"}
    names |= {"TRAINING_ARGS_NAME": "training_args.bin"}
    assert {name: getattr(transformers.trainer, name, None) for name in names} == names


def test_progress_is_shown_by_a_callback_that_can_be_taken_off(trainer):
    assert issubclass(transformers.trainer.DEFAULT_PROGRESS_CALLBACK, transformers.TrainerCallback)
    taken = trainer.pop_callback(transformers.PrinterCallback) or trainer.pop_callback(
        transformers.trainer.DEFAULT_PROGRESS_CALLBACK
    )
    assert taken, "Trainer prints by another callback: a run would show every line twice"


def test_a_layer_reads_its_own_switch_for_recomputing(model):
    """`training.hf_trainer.recompute_activations` turns it for each micro-batch."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [*model.model.audio_tower.layers, *model.model.language_model.layers]
    assert all(layer.gradient_checkpointing for layer in layers), "layers no longer hold `gradient_checkpointing`"
    calls, function = [], "_gradient_checkpointing_func"
    layer = model.model.language_model.layers[0].train()
    setattr(layer, function, lambda *args, **kwargs: calls.append(1) or (torch.zeros(1, 1, 1),))
    for switch, times in ((True, 1), (False, 0)):
        calls.clear()
        layer.gradient_checkpointing = switch
        hidden = torch.zeros(1, 1, model.config.get_text_config().hidden_size)
        heads = model.config.get_text_config().num_attention_heads
        angles = torch.zeros(1, 1, hidden.shape[-1] // heads)
        layer(hidden, position_embeddings=(angles.cos(), angles.sin()))
        assert len(calls) == times, "a layer's switch no longer decides whether its activations are recomputed"


def test_a_cache_layer_holds_keys_and_values():
    layer = DynamicLayer()
    assert layer.is_initialized is False
    layer.update(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3))
    assert layer.is_initialized and layer.keys.shape == layer.values.shape == (1, 1, 2, 3)
    assert layer.get_seq_length() == 2, "rollout.KVCacheLayer keeps its own count under this name"


def test_the_attention_is_chosen_by_a_name_in_the_config(model):
    """`model.use_own_attention` sets it once, for the language model alone, and it is not saved with the model."""
    assert model.config.get_text_config()._attn_implementation == attention.NAME
    assert model.config.audio_config._attn_implementation == "sdpa"
    assert attention.NAME not in model.config.to_json_string()
    assert "config._attn_implementation" in inspect.getsource(Qwen2Attention.forward)


def test_which_class_makes_a_configs_model():
    mapping = transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING
    assert transformers.Qwen2AudioConfig in mapping, "families looks for Qwen2-Audio in this list"
    assert hasattr(transformers.Qwen2AudioConfig(), "_name_or_path"), "model.check_model names a model by this"


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
