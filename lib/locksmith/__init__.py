"""Crediting the Locksmith: the code behind a book on when and how models think."""

import os

# Large tensors on a CPU come in huge pages. Otherwise Linux hands them out 4 KiB at a time, anew
# for each temporary, which in a container took half of a training step on open weights. PyTorch
# reads this at its first allocation; no value changes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
