"""What all tests share: one thread a process, no GPU tests without a GPU, the longest first."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "test_pipeline" not in item.nodeid)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
