"""A random model of Qwen2-Audio's own class, small enough to compare with transformers in float64's spirit."""

import numpy as np
import pytest
import torch

from aqa_lib import inputs
from aqa_lib.audio import Clip
from aqa_lib.dataset import Question
from aqa_lib.grpo import GRPOTrainer
from aqa_lib.inputs import Rollouts
from aqa_lib.tests.helpers import config, length_reward
from aqa_lib.tiny import pretrain


@pytest.fixture(scope="session")
def processor():
    return pretrain.build_processor()


@pytest.fixture
def model(processor):
    """Untrained, float32; sharper than at initialisation, so that greedy answers differ between prompts."""
    model = pretrain.build_model(processor, seed=1).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        model.model.multi_modal_projector.linear.weight.mul_(8)
    return model


@pytest.fixture(scope="session")
def clips():
    """Four clips of different lengths, one of an odd number of frames and one that fills the model's chunk."""
    rng = np.random.default_rng(0)
    return [Clip(rng.standard_normal(S).astype(np.float32) / 5) for S in (1_300, 16_001, 31_840, 48_000)]


@pytest.fixture(scope="session")
def questions(clips):
    """One question on each clip, of different lengths."""
    from io import BytesIO

    import soundfile

    result = []
    for number, clip in enumerate(clips):
        file = BytesIO()
        soundfile.write(file, clip.wave, 16_000, format="WAV", subtype="FLOAT")
        choices = ("rain", "a dog", "a siren", "wind")[: 2 + number % 3]
        text = "What is heard?" + " Listen well." * number
        result.append(Question(f"q{number}", file.getvalue(), text, choices, choices[number % 2], "sound"))
    return result


@pytest.fixture(scope="session")
def prompts(processor, questions):
    return inputs.collate(processor, [inputs.prepare(processor, question) for question in questions])


@pytest.fixture
def train(model, processor, questions, tmp_path):
    """Train the fixture's model and return its trainer."""

    def run(rewards=(length_reward,), resume=None, policy=None, eval_dataset=None, train_dataset=None, **options):
        args = config(options.pop("folder", tmp_path), **options)
        trainer = GRPOTrainer(policy or model, processor, rewards, args, train_dataset or questions, eval_dataset)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


@pytest.fixture
def rollouts(prompts):
    """Four prompts of different lengths with three answers each, of 1 to 6 tokens."""
    lengths = torch.tensor([[1, 4, 6], [2, 2, 1], [6, 1, 3], [5, 5, 5]])
    ids = torch.randint(10, 300, (4, 3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < lengths[..., None]
    return Rollouts(prompts, torch.where(mask, ids, 0), mask, torch.ones(4, 3, dtype=torch.bool))
