"""What all tests share: one thread a process, no GPU tests without a GPU, the longest first."""

import pytest
import torch
from locksmith.book import chromium

torch.set_num_threads(1)

LONGEST = ("test_pipeline.py", "test_stages.py", "test_parallel.py", "test_colab.py")  # files


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """A cache folder of the tests' own: what the user's holds is no part of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def with_chromium():
    """Skips where there is no Chromium."""
    try:
        chromium.find()
    except chromium.NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tab(with_chromium):
    """A tab of a phone's width."""
    with chromium.opened(390, 800) as tab:
        yield tab


def pytest_collection_modifyitems(items):
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # keywords hold the names of folders as well
                item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
