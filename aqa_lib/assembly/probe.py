"""Measure what an encoder's states hold, with a linear probe: what a model could say if it put all into words.

`model -> [probe] -> align`. A clip's states are averaged over time, and a logistic regression names a fact from them.
If the probe names 94 % of the sounds and the model 41 %, its ears are not what is missing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..inputs import Prompts
from ..model import encode_audio, parts
from ..training.data import AudioCache

STEPS = 200  # of L-BFGS, which stops earlier where it has converged


@torch.no_grad()
def states(model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
    """Run the audio tower alone: what the projector would be given of clips, one after the other, (sum of N, D)."""
    heard = []
    watch = parts(model).projector.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    try:
        encode_audio(model, features, lengths)
    finally:
        watch.remove()
    return heard[0]


class StatesCache(AudioCache):
    """The states of clips under a frozen audio tower: each clip is encoded once, and the projector can learn."""

    def __init__(self, model: nn.Module, gigabytes: float, kept: dict | None = None):
        super().__init__(model, gigabytes)
        self.kept = {} if kept is None else kept
        self.free_bytes -= sum(tensor.nbytes for tensor in self.kept.values())
        self.frozen = not any(weight.requires_grad for weight in parts(model).audio_tower.parameters())

    def encode(self, alone: Prompts) -> Tensor:
        return states(self.model, alone.input_features, alone.feature_lengths)

    def tokens(self, kept: list[Tensor]) -> list[Tensor]:
        lengths = [len(some) for some in kept]
        return list(parts(self.model).projector(torch.cat(kept)).split(lengths))


class LinearProbe:
    """A logistic regression from features to names, on standardised features, with weights held small.

    features: (n, D). names: of each row. strength: of the penalty, as 1/C of scikit-learn's LogisticRegression.
    """

    def __init__(self, features: Tensor, names: Sequence[str], strength: float = 1.0):
        self.names = sorted(set(names))
        self.mean, self.deviation = features.mean(0), features.std(0).clamp(min=1e-6)
        truth = torch.tensor([self.names.index(name) for name in names])
        given = (features - self.mean) / self.deviation
        weight = torch.zeros(len(self.names), features.shape[1], requires_grad=True)
        bias = torch.zeros(len(self.names), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            fit = nn.functional.cross_entropy(given @ weight.T + bias, truth, reduction="sum")
            total = fit + strength / 2 * (weight**2).sum()
            total.backward()
            return total

        with torch.enable_grad():
            optimizer.step(loss)
        self.weight, self.bias = weight.detach(), bias.detach()

    def __call__(self, features: Tensor) -> list[str]:
        """Name rows of features, (n, D)."""
        scores = (features - self.mean) / self.deviation @ self.weight.T + self.bias
        return [self.names[index] for index in scores.argmax(1).tolist()]
