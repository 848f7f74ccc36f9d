"""Replayed forward passes on a CPU: a recorder of tensor operations stands in for CUDA graphs."""

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from locksmith import cache, drawing, engine, graphs
from locksmith.engine import Control, Steer, sample
from test_engine import PROMPTS, D, gemma3, gpt_neox, llama, qwen2
from torch.utils._python_dispatch import TorchDispatchMode

HOW = dict(max_new_tokens=16, stop=set(range(30, 36)), seed=4)


class Recorder(TorchDispatchMode):
    """Does what `torch.cuda.CUDAGraph` does: keeps the operations between begin and end, and
    repeats them on the same memory."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, out))
        return out

    def capture_begin(self, pool, capture_error_mode):
        self.__enter__()

    def capture_end(self):
        self.__exit__(None, None, None)

    def replay(self):
        for function, args, kwargs, out in self.done:
            again = function(*args, **kwargs)
            for old, new in zip(*(x if isinstance(x, (tuple, list)) else [x]
                                  for x in (out, again))):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorded(monkeypatch):
    """Runners are replayed as on a GPU; the list of all `Replayed`."""
    made, stream = [], SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    for name, stand_in in (("CUDAGraph", Recorder), ("graph_pool_handle", lambda: None),
                           ("Stream", lambda: stream), ("current_stream", lambda: stream),
                           ("synchronize", lambda: None),
                           ("stream", lambda stream: contextlib.nullcontext())):
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def runner(model, n_rows, n_columns, *rest):
        kind = cache.Fused if type(model) in cache.PARTS else cache.Generic
        made.append(graphs.Replayed(kind(model, n_rows, n_columns, *rest), n_columns))
        return made[-1]
    monkeypatch.setattr(cache, "runner", runner)
    monkeypatch.setattr(cache, "room", lambda like, *shape: like.new_zeros(shape))
    monkeypatch.setattr(engine, "LOOK_EVERY", {"cpu": 4})
    monkeypatch.setattr(engine, "DROP_AT", {"cpu": 0.5})
    return made


def alike(a, b):
    assert a.ids() == b.ids()
    assert torch.allclose(a.logprobs, b.logprobs, atol=1e-4)


def plainly(*args, **how):
    """`sample` without what the fixture put there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "runner", lambda model, *how: cache.Generic(model, *how))
        return sample(*args, **how)


@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 5, 6], [1, 7, 8]]], ids=["unequal", "equal"])
@pytest.mark.parametrize("make", [llama, qwen2, gemma3, gpt_neox])
def test_a_replayed_pass_says_what_the_plain_one_says(make, prompts, recorded, monkeypatch):
    monkeypatch.setattr(graphs, "BLOCK", 8)  # several recordings on the way
    torch.manual_seed(0)
    net = make().eval()
    want, replays, replay = plainly(net, prompts, 6, **HOW), [], graphs.Replayed.replay
    monkeypatch.setattr(graphs.Replayed, "replay",
                        lambda *args: (replays.append(1), replay(*args))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alike(sample(net, prompts, 6, **HOW), want)
    assert len(replays) >= 12 and len(set(want.lengths.tolist())) > 3


@pytest.mark.parametrize("make", [llama, qwen2, gpt_neox])
def test_steering_reading_and_guides_go_on_between_the_stretches(make, recorded):
    torch.manual_seed(0)
    net, guide = make().eval(), make().eval()
    vectors = torch.randn(2, D, generator=torch.Generator().manual_seed(1))

    def gate(moment):
        chosen = moment.guides[0][0].argmax(-1) + (moment.guides[0][1].sum(-1) > 0)
        return torch.nn.functional.one_hot(chosen % 2, 2)[:, None].float()
    control = Control([Steer(1, vectors, gate=gate), Steer(0, vectors[0], positions=range(9, 14))],
                      [(guide, 1)], read=[1, 2])
    want = plainly(net, PROMPTS, 3, control=control, **HOW)
    got = sample(net, PROMPTS, 3, control=control, **HOW)
    alike(got, want)
    assert got.steered == want.steered > 0
    assert torch.equal(got.steered_at, want.steered_at)
    for layer in (1, 2):
        assert torch.allclose(got.reads[layer], want.reads[layer], atol=1e-4)
    assert not any(x.off for x in recorded) and len(recorded) == 2


@pytest.mark.parametrize("fault, said", [
    ("refused", "RuntimeError: operation not permitted when stream is capturing"),
    ("wrong", "its logits are off by"), ("nan", "its logits are off by nan")])
def test_what_cannot_be_replayed_runs_plainly_and_is_said(fault, said, recorded, monkeypatch):
    torch.manual_seed(0)
    net, one = llama().eval(), cache.Fused.one
    control = Control([Steer(0, torch.ones(D))], read=[2])
    want = plainly(net, PROMPTS, 3, control=control, **HOW)

    def refuse(*args, **how):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def wrong(self, new, t, pads, end):
        return one(self, new, t, pads, end - 1 if fault == "wrong" else end) * (
            1.1 if fault == "wrong" else torch.nan)
    if fault == "refused":
        monkeypatch.setattr(Recorder, "capture_begin", refuse)
        monkeypatch.setattr(Recorder, "capture_end", lambda self: None)
    else:
        monkeypatch.setattr(cache.Fused, "one", wrong)
    with pytest.warns(UserWarning, match=said):
        got = sample(net, PROMPTS, 3, control=control, **HOW)
    alike(got, want)
    assert got.steered == want.steered
    assert torch.allclose(got.reads[2], want.reads[2], atol=1e-4)


def test_rows_are_dropped_rarely_where_each_number_of_them_is_recorded(recorded, monkeypatch):
    torch.manual_seed(0)
    net, sizes, draw = llama().eval(), [], drawing.draw
    monkeypatch.setattr(drawing, "draw",
                        lambda logits, *a: (sizes.append(len(logits)), draw(logits, *a))[1])
    how = {**HOW, "stop": {30, 31}, "max_new_tokens": 40}
    out = sample(net, PROMPTS, 16, **how)
    assert len(set(sizes)) > 2
    assert all(b <= a / 2 for a, b in zip(sizes, sizes[1:]) if a != b)
    alike(out, plainly(net, PROMPTS, 16, **how))
