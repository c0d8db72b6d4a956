"""Hold for every test: no network, no window, and the same property-test examples on every CI run."""

import os
import socket

import pytest
from hypothesis import settings

# Set before any test imports the libraries that read them; commands that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# One thread: the models are tiny, and threads that wait for a busy core make the suite ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU, flashoptim's kernels run in Triton's interpreter; Triton asks once, when it is first imported.
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("here", deadline=None)  # a busy machine is not a failure
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_sessionstart(session):
    """Make the tiny world before several workers (`-n`) would, each over the other's."""
    if session.config.getoption("numprocesses", None):
        from aqa_lib import scale
        from aqa_lib.tiny import synth

        synth.write(scale.TINY)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise OSError(f"a test tried to reach {address}: tests must not touch the network")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
