"""Compare what is planned with what is counted: parameters and states exactly, activations closely."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aqa_lib import attention, inputs, scale
from aqa_lib import model as models
from aqa_lib.__main__ import main
from aqa_lib.grpo import GRPOConfig, GRPOTrainer
from aqa_lib.inputs import Rollouts
from aqa_lib.large import masters, planner
from aqa_lib.large.planner import GB, ModelSizes, Work
from aqa_lib.logps import completion_logps
from aqa_lib.tests.helpers import config, length_reward

WORK = Work(prompt=60, answer=1, questions=2, generations=4, asked=0, chunk=64, half=False)


@pytest.fixture(scope="module")
def full():
    """The paper's model, at the sizes that `plan --scale full` counts with."""
    return ModelSizes.of(planner.skeleton("Qwen/Qwen2-Audio-7B-Instruct", models.PARTS))


def step(tmp_path, **options):
    return GRPOConfig(**scale.get("full").grpo | {"output_dir": str(tmp_path)} | options)


def saved_bytes(model, run):
    """The bytes that autograd saves in a call of `run`, weights and autocast's copies of them aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(shape) for p in model.parameters() for shape in (p.shape, p.shape[::-1]) if p.dim() > 1}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:
            found[storage.data_ptr()] = storage  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in found.values())


def test_the_full_model_has_its_8_397_billion_parameters(full):
    frozen = 1500 * 1280  # the tower's sinusoids
    assert sum(full.learn) + frozen == 8_397_094_912
    assert full.frozen == 2 * frozen and full.audio_tokens == 750 and full.kv == 4096


def test_weights_gradients_and_states_are_exact(model):
    a = ModelSizes.of(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    planned = planner.phases(a, WORK, "fp32", None, 0, 0)["update"]
    assert planned["weights"] == sum(p.nbytes for p in model.parameters())
    assert planned["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = [s for state in optimizer.state.values() for name, s in state.items() if name != "step"]
    assert planned["states"] == sum(s.nbytes for s in states)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_what_a_layer_saves_is_counted(model, kind, recompute):
    """Of the language model and of the tower: what two layers add to what autograd saves, within 5 %."""
    T, B = 60, 2
    if kind == "bfloat16":
        model.bfloat16()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    embeds = torch.randn(B, T, 128, dtype=model.dtype, requires_grad=True)
    mask = torch.ones(B, 1, T, T, dtype=torch.bool).tril()
    half = torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")
    work = replace(WORK, prompt=T, half=kind != "float32")
    master = "kahan" if kind == "bfloat16" else "fp32"

    def language():
        with half:
            models.backbone(model, embeds, mask, torch.arange(T).expand(B, T))

    def tower():
        with half:
            models.encode_audio(model, torch.randn(B, 64, 4 * T), torch.tensor([4 * T - 2] * B))

    for part, run in ((model.model.language_model, language), (model.model.audio_tower, tower)):
        counted, planned = [], []
        for layers in (part.layers, part.layers[:1]):
            part.layers = layers
            counted.append(saved_bytes(model, run))
            planned.append(B * T * planner.saved_per_token(ModelSizes.of(model), work, master, recompute))
        assert planned[0] - planned[1] == pytest.approx(counted[0] - counted[1], rel=0.05), run


def test_what_a_layer_saves_for_long_answers_is_counted(model, processor, questions):
    """Their attention is taken apart, which copies the prompt's keys; within 5 %."""
    prompts = inputs.collate(processor, [inputs.prepare(processor, questions[3])])
    ids = torch.ones(1, 8, 61, dtype=torch.long)
    some = Rollouts(prompts, ids, ids.bool(), ids[..., 0].bool())
    work = replace(WORK, prompt=prompts.input_ids.shape[1], answer=61, generations=8)
    part, counted, planned = model.model.language_model, [], []
    for layers in (part.layers, part.layers[:1]):
        part.layers = layers
        counted.append(saved_bytes(model, lambda: completion_logps(model, some)))
        planned.append(work.row * planner.saved_per_token(ModelSizes.of(model), work, "fp32", recompute=False))
    assert attention.pays(work.prompt, 8, 60, 480)
    assert planned[0] - planned[1] == pytest.approx(counted[0] - counted[1], rel=0.05)


def test_a_pass_takes_what_is_planned(model, processor, questions):
    """Of one with the longest clip; a little less, as not all of its tokens are audio."""
    prompts = inputs.collate(processor, [inputs.prepare(processor, questions[3])] * 2)
    ids = torch.ones(2, 2, 4, dtype=torch.long)
    some = Rollouts(prompts, ids, ids.bool(), ids[..., 0].bool())
    a, P = ModelSizes.of(model), prompts.input_ids.shape[1]
    work = replace(WORK, prompt=P, answer=4, generations=2)
    planned = 2 * work.row * planner.saved_per_token(a, work, "fp32", recompute=False)
    counted = saved_bytes(model, lambda: completion_logps(model, some))
    assert work.row == P + 2 * 3
    assert counted < planned < 2 * counted, (counted, planned)


def test_the_report_fits_one_card(full, tmp_path):
    """16 questions x 8 answers of 256 tokens, prompts of 780, all weights trained, in 78 GB; and what more allows."""
    args = step(tmp_path)
    work = Work.of(args, full)
    assert (work.prompt, work.answer, work.questions, work.generations) == (780, 256, 16, 8)
    found = {size: planner.plan(full, work, size * GB, args) for size in (78, 141, 200)}
    assert all(plan.fits for plan in found.values())
    assert [(p.master, p.reference) for p in found.values()] == [
        ("24bit", "streamed"), ("24bit", "resident"), ("fp32", "resident"),
    ]  # fmt: skip
    assert all(plan.tokens >= work.row for plan in found.values())
    policy = found[78].phases["policy"]
    assert policy["weights"] / GB == pytest.approx(16.8, abs=0.05)
    held = policy["weights"] + policy["gradients"] + policy["states"]
    assert held / GB == pytest.approx(60, abs=0.5)  # 24-bit masters and 8-bit states
    assert not planner.plan(full, work, 48 * GB, args).fits


def test_four_cards_that_share_the_model_out_keep_float32_masters(full, tmp_path):
    args = step(tmp_path, fsdp=True, master="fp32")
    alone = Work.of(args, full)
    four = replace(alone, shards=4, questions=4)
    plans = [planner.plan(full, work, 80 * GB, args) for work in (alone, four)]
    assert [plan.fits for plan in plans] == [False, True] and plans[1].reference == "resident"
    for item in ("weights", "gradients", "states"):
        assert plans[1].phases["policy"][item] == pytest.approx(plans[0].phases["policy"][item] / 4, rel=1e-3)
    assert plans[1].phases["rollout"]["gathered"] > 2 * 2 * full.vocab * full.hidden  # embeddings and head


def test_short_rows_are_not_computed_again(full, tmp_path):
    """More memory, or fewer bytes a token, and activations are kept; without checkpointing all of them are."""
    args = step(tmp_path)
    plain = [planner.plan(full, Work.of(args, full), n * GB, args).plain for n in (78, 80, 141)]
    assert 280 + 8 * 11 < plain[0] < plain[1] < plain[2]
    args = step(tmp_path, gradient_checkpointing=False)
    kept = planner.plan(full, Work.of(args, full), 141 * GB, args)
    assert kept.fits and kept.tokens == kept.plain


def test_advice_is_mild_first(full, tmp_path):
    args = step(tmp_path, gradient_checkpointing=False)
    assert planner.advice(full, args, 80 * GB).startswith("turn on gradient_checkpointing (about ")
    args = step(tmp_path)
    assert planner.advice(full, args, 72 * GB).startswith("lower ")
    assert "4-bit model (lora_r 16, quantization 4bit) and lower" in planner.advice(full, args, 16 * GB)
    assert planner.advice(full, args, 4 * GB) == "use a smaller model or a larger device"
    missing = SimpleNamespace(type="cuda")
    if masters.refusal("24bit", "cuda"):
        assert "pip install flashoptim for master 24bit" in planner.advice(full, args, 80 * GB, missing)


def test_colab_fits_its_card(tmp_path):
    colab = scale.get("colab")
    a = ModelSizes.of(planner.skeleton(colab.model, models.PARTS, colab.lora_r), colab.quantization)
    assert sum(a.learn) == 39_976_960 and not a.low and a.adapters
    args = GRPOConfig(**colab.grpo | {"output_dir": str(tmp_path)})
    assert planner.plan(a, Work.of(args, a), 16 * GB, args).fits


def test_plan_prints_a_table(capsys):
    assert main(["plan", "--scale", "full", "--memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "8.395 B weights are trained, 24bit" in text and "reference: streamed" in text
    assert text.rstrip().endswith("of 80 GB: fits")
    assert main(["plan", "--scale", "full", "--memory", "72"]) == 0
    assert "does not fit\nTo make it fit: lower" in capsys.readouterr().out
    assert main(["plan", "--memory", "8"]) == 0
    assert " M weights are trained" in capsys.readouterr().out, "a tiny model is not 0.000 B"
    assert main(["plan", "--scale", "huge"]) == 2


def test_what_cannot_fit_is_refused_before_loading(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models, "load", lambda *args, **options: pytest.fail("it was loaded"))
    assert main(["train", "--memory", "1", "--output_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "this run needs about" in message and "but only 1 GB are available:" in message


def test_activations_are_computed_again_where_it_is_needed_and_nothing_changes(model, processor, questions, tmp_path):
    start, found, again = {k: v.clone() for k, v in model.state_dict().items()}, [], []
    model.model.language_model.layers[0].register_forward_hook(
        lambda layer, *rest: again[-1].append(layer.gradient_checkpointing) if torch.is_grad_enabled() else None
    )
    for above in (0, 120, 10_000):
        model.load_state_dict(start)
        again.append([])
        args = config(
            tmp_path,
            gradient_checkpointing=True,
            checkpoint_above=above,
            max_tokens_per_forward=150,
            max_steps=1,
            optim="sgd",
        )
        trainer = GRPOTrainer(model, processor, [length_reward], args, questions)
        trainer.train()
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    assert set(again[0]) == {True} and set(again[1]) == {True, False} and set(again[2]) == {False}
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[2][name], value, atol=1e-5, rtol=1e-4)
