"""A forward pass of one token a row as CUDA graphs.

At small batches a GPU waits for Python, which launches hundreds of kernels a token. A graph is
recorded once for a number of rows and columns and replayed with one call. What steers and reads the
residual stream is Python, so recording stops at each touched block: one graph a stretch, and the
touch runs between them as ever.

Before a recording is used its logits are compared with those of the plain pass. Where they differ,
or where something of the pass cannot be recorded, a warning says so and the plain pass goes on.
"""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 512  # columns: attention reads all that a graph was made for, filled or not


class Replayed:
    """A runner of `cache` whose steps of one token are replayed. runner: with `one` and `touch`;
    n_columns: of its cache."""

    def __init__(self, runner: Any, n_columns: int):
        self.runner, self.touch, self.n_columns = runner, runner.touch, n_columns
        self.graphs, self.made_for, self.off = [], None, False

    def __call__(self, new: Int[Tensor, "rows new"], t: int,
                 pads: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the last of the new tokens; they hold until the next call."""
        if new.shape[1] > 1 or self.off:
            return self.runner(new, t, pads)
        end = min(t + BLOCK - t % BLOCK, self.n_columns)
        if self.made_for == (len(new), end):
            return self.replay(new, t, pads, self.touch)
        touched = {}

        def keep(layer, hidden):
            touched[layer] = self.touch(layer, hidden)
            return touched[layer]

        def again(layer, hidden):
            return touched[layer]
        logits = self._plain(new, t, pads, keep)
        self._make(new, t, pads, end, again)
        if not self.off:
            self._check(logits, self.replay(new, t, pads, again))
        if self.off:  # what a wrong pass wrote into the cache is written over
            self._plain(new, t, pads, again)
        return logits

    def _plain(self, new, t, pads, touch):
        self.runner.touch = touch
        try:
            return self.runner(new, t, pads)
        finally:
            self.runner.touch = self.touch

    def replay(self, new: Int[Tensor, "rows 1"], t: int, pads: Int[Tensor, " rows"],
               touch: Callable[[int, Tensor], Tensor]) -> Float[Tensor, "rows vocabulary"]:
        """The logits that the graphs give, with a touch between them."""
        self.new.copy_(new)
        self.pads.copy_(pads)
        self.t.fill_(t)
        for graph, layer, hidden in self.graphs:
            graph.replay()
            if hidden is not None:
                out = touch(layer, hidden)
                if out is not hidden:
                    hidden.copy_(out)
        return self.logits

    def _make(self, new, t, pads, end, touch):
        """Record `one`, on a stream of its own, as recording asks for."""
        torch.cuda.synchronize()
        self.graphs, self.made_for, self.logits = [], None, None  # of other shapes: no longer used
        self.new, self.pads, self.t = new.clone(), pads.clone(), pads.new_full((1,), t)
        self.pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        collects = gc.isenabled()
        gc.disable()  # what it frees on the GPU would break a recording
        try:
            with torch.cuda.stream(stream):
                # Kernels' libraries ready themselves at their first call, which no graph may hold.
                self.runner.touch = touch
                self.runner.one(self.new, self.t, self.pads, end)
                stream.synchronize()
                self.runner.touch = self._split
                self._begin()
                try:
                    self.logits = self.runner.one(self.new, self.t, self.pads, end)
                finally:
                    self.graph.capture_end()
            self.graphs.append((self.graph, None, None))
            self.made_for = len(new), end
        except Exception as error:  # whatever of the pass cannot be recorded: it is named
            self._stop(f"{type(error).__name__}: {error}".splitlines()[0])
        finally:
            self.runner.touch = self.touch
            if collects:
                gc.enable()
        torch.cuda.current_stream().wait_stream(stream)

    def _begin(self):
        self.graph = torch.cuda.CUDAGraph()
        self.graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def _split(self, layer, hidden):
        """In a recording: the stretch up to this block is done, another begins."""
        self.graph.capture_end()
        self.graphs.append((self.graph, layer, hidden))
        self._begin()
        return hidden

    def _check(self, plain, replayed):
        size = max(1.0, float(plain.abs().max()))
        off = float((plain.float() - replayed.float()).abs().max()) / size
        # Not "above": a NaN is above nothing.
        if not off <= (1e-3 if plain.dtype == torch.float32 else 0.1):
            self._stop(f"its logits are off by {off:.1g} of their size")

    def _stop(self, why):
        self.graphs, self.made_for, self.off = [], None, True
        warnings.warn(f"the forward pass is not replayed as a CUDA graph ({why}); it runs kernel "
                      "by kernel, which is slower at small batches", stacklevel=2)

    def pairs(self) -> list[tuple[Tensor, ...]]:
        return self.runner.pairs()

    def repeat(self, owner: Int[Tensor, " rows"], t: int) -> None:
        self.runner.repeat(owner, t)

    def move(self, src: Int[Tensor, " rows"], dst: Int[Tensor, " rows"], t: int) -> None:
        self.runner.move(src, dst, t)

    def close(self) -> None:
        if self.graphs:
            torch.cuda.synchronize()  # the last one may still run
        self.graphs, self.made_for, self.touch, self.logits = [], None, None, None
        self.runner.close()
