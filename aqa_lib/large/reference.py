"""Keep the frozen reference model next to the policy, in as little memory as it needs.

`model -> [reference] -> grpo`. The paper holds a whole second model on every card. Here frozen parts are shared with
the policy, what is computed in half precision is kept in half precision, and the layers may wait in host memory, each
sent to the device while the one before it computes. None of this changes a single bit of the log-probabilities.
"""

import copy

import torch
from torch import Tensor, nn

from ..model import parts

PLACES = ("auto", "resident", "streamed")


def make(model: nn.Module, place: str = "resident", dtype: torch.dtype | None = None) -> nn.Module:
    """Return a frozen copy of a model as it is now.

    place: "resident" (on the policy's device) or "streamed" (layers and embeddings in host memory). dtype: what
    autocast computes in, so that the matrices can be kept in it. Untrained parameters are shared, not copied.
    """
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    device = next(model.parameters()).device
    result = copy.deepcopy(model, dict(shared)).requires_grad_(False).eval()
    for module in result.modules():
        if (
            dtype
            and isinstance(module, nn.Linear | nn.Conv1d)
            and not any(id(p) in shared for p in module.parameters())
        ):
            module.to(dtype)  # as autocast would, so nothing changes; it leaves norms and embeddings alone
    if place == "streamed":
        p = parts(result)
        layers = [*p.audio_tower.layers, *p.language_model.layers]
        layers = [layer for layer in layers if not any(id(weight) in shared for weight in layer.parameters())]
        if layers:
            Stream(layers, device)
        table = p.language_model.get_input_embeddings()
        if id(table.weight) not in shared and table.weight is not p.head.weight:
            _look_up_on_host(table, device)
    return result


def _look_up_on_host(table: nn.Embedding, device: torch.device) -> None:
    """Leave an embedding in host memory: only the rows that are looked up travel."""
    table.to("cpu")
    table.register_forward_pre_hook(lambda module, args: (args[0].to("cpu"),))
    table.register_forward_hook(lambda module, args, rows: rows.to(device))


class Stream:
    """Run layers whose weights wait in host memory, sending each while the one before it computes.

    The device holds two layers at a time, in two alternating buffers. Without a GPU the same copies are made one after
    the other.
    """

    def __init__(self, layers: list[nn.Module], device: torch.device):
        cuda = device.type == "cuda"
        self.host = []
        for layer in layers:
            flat = torch.empty(_views(None, layer)[1], dtype=torch.uint8, pin_memory=cuda)
            for weight, view in zip(layer.parameters(), _views(flat, layer)[0], strict=True):
                weight.data = view.copy_(weight.data)
            self.host.append(flat)
        self.buffers = [torch.empty(max(map(len, self.host)), dtype=torch.uint8, device=device) for _ in range(2)]
        self.copies = torch.cuda.Stream(device) if cuda else None
        self.sent = None  # the layer that is in its buffer, or on its way there
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda layer, args, index=index: self._enter(index, layer))
            layer.register_forward_hook(lambda layer, args, output, index=index: self._leave(index, layer))

    def _send(self, index: int) -> None:
        buffer, flat = self.buffers[index % 2], self.host[index]
        if self.copies is None:
            buffer[: len(flat)].copy_(flat)
        else:
            # wait until the layer now in this buffer, whose work is already queued, has been computed
            self.copies.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.copies):
                buffer[: len(flat)].copy_(flat, non_blocking=True)
        self.sent = index

    def _enter(self, index: int, layer: nn.Module) -> None:
        if self.sent != index:
            self._send(index)
        if self.copies is not None:
            torch.cuda.current_stream().wait_stream(self.copies)
        for weight, view in zip(layer.parameters(), _views(self.buffers[index % 2], layer)[0], strict=True):
            weight.data = view
        if index + 1 < len(self.host):
            self._send(index + 1)

    def _leave(self, index: int, layer: nn.Module) -> None:
        for weight, view in zip(layer.parameters(), _views(self.host[index], layer)[0], strict=True):
            weight.data = view


def _views(flat: Tensor | None, layer: nn.Module) -> tuple[list[Tensor], int]:
    """Lay out a layer's weights in one buffer of bytes; return them as views of it, and the bytes they take."""
    views, start = [], 0
    for weight in layer.parameters():
        size = weight.numel() * weight.element_size()
        if flat is not None:
            views.append(flat[start : start + size].view(weight.dtype).view(weight.shape))
        start += -(-size // 256) * 256  # CUDA's own alignment of tensors
    return views, start
