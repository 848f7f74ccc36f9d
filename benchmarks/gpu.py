"""What the library does on one GPU: run by benchmarks/gpu.sh, which says what it needs.

All weights are random, in the shapes of the lab's model and of Qwen2.5 (arXiv 2412.15115, table 1):
speed does not depend on them. All weights are bf16. Without the name of a part all run, in order of
worth, each in a process of its own with a time limit:
    tests     those marked `gpu`
    decode    the engine against `generate`, as it is: tokens drawn at temperature 1, no row ends
    steering  a vector at every position, and a second model that reads along, in the engine
    rl        one RL step with LoRA: sampling, then the update
    train     pre-training steps of the lab's model, of one seed and of ten side by side
    compiled  the engine against `generate` with a static cache and a compiled forward, its best

Seconds are wall-clock between synchronisations, medians of the repeats. `floor` is the time that
the weights and the cache need to pass through memory once a token at the rate of a copy (bytes read
and written), or their multiplications at the rate of an 8192 x 8192 x 8192 bf16 product, whichever
is more, both measured on this card; `share_of_floor` is floor / measured, prefill included.
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as xml
from pathlib import Path

import torch
import transformers
from locksmith import engine, finetune, model, pretrain, rl
from locksmith.experiments import hybrid, taxonomy
from transformers import AutoModelForCausalLM, Qwen2Config

LIMITS = {"tests": 75, "decode": 140, "steering": 50, "rl": 45, "train": 60, "compiled": 110}
ROOT = Path(__file__).resolve().parents[1]
LAB = {"hidden": 128, "layers": 4, "heads": 4, "mlp": 384, "context": 384}
QWEN = {  # hidden, mlp, layers, heads, key-value heads, vocabulary, tied
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151_936, True),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 151_936, True),
    "qwen2.5-7b": (3584, 18_944, 28, 28, 4, 152_064, False)}
PROMPT = 16  # tokens


class Part:
    """One part on its way: where it runs, how large, and its file."""

    def __init__(self, name, device, tiny, out):
        self.name, self.device, self.tiny = name, torch.device(device), tiny
        cuda = self.device.type == "cuda"
        card = torch.cuda.get_device_name(self.device) if cuda else "cpu"
        self.path = Path(out, re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-"), f"{name}.json")
        self.content = {
            "part": name, "card": card, "tiny": tiny, "complete": False, "torch": torch.__version__,
            "cuda": torch.version.cuda, "transformers": transformers.__version__,
            "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "warnings": [], "facts": []}
        self.write()

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".half")
        half.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        half.replace(self.path)

    def fact(self, **found):
        """Keeps one finding, and prints it."""
        self.content["facts"].append(found)
        self.write()
        print(self.name, *(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                           for k, v in found.items()), flush=True)

    def seconds(self, job, repeats=1, warm=True):
        """Median seconds of `job`, after one run to warm up, of it or of `warm`."""
        found = []
        if warm:
            (job if warm is True else warm)()
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            job()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def fresh_memory(self):
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self):
        cuda = self.device.type == "cuda"
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if cuda else None

    def build(self, name, seed=0):
        """A model in the shape of that name with random bf16 weights, on the device."""
        torch.manual_seed(seed)
        if name == "lab":
            return model.build(LAB, seed).to(self.device, torch.bfloat16).eval()
        hidden, mlp, layers, heads, kv_heads, vocabulary, tied = QWEN[name]
        if self.tiny:
            hidden, mlp, layers, vocabulary = heads * 8, 64, 2, 200
        config = Qwen2Config(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
            tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None, pad_token_id=0,
            max_position_embeddings=4096)
        with self.device:
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    def rates(self):
        """Bytes a second of a copy, read and written, and operations a second of a product."""
        n = 2**31 if not self.tiny else 2**20
        pair = [torch.empty(n, dtype=torch.uint8, device=self.device) for _ in range(2)]
        copy = 2 * n / self.seconds(lambda: pair[1].copy_(pair[0]), 20)
        n = 8192 if not self.tiny else 128
        pair[:] = [torch.randn(n, n, device=self.device).bfloat16() for _ in range(2)]
        product = 2 * n**3 / self.seconds(lambda: pair[0] @ pair[1], 10)
        self.fact(copy_gb_s=copy / 1e9, matmul_tflops=product / 1e12)
        return copy, product


def floor(net, batch, columns, rates):
    """Seconds that one token of `batch` rows needs at least, with caches of `columns` tokens."""
    c, item = net.config, net.dtype.itemsize
    weights = sum(p.numel() for p in net.parameters())
    if not c.tie_word_embeddings:
        weights -= net.get_input_embeddings().weight.numel()  # a row of it a token
    size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    kept = 2 * c.num_hidden_layers * c.num_key_value_heads * size * columns * batch
    return max((weights + kept) * item / rates[0], 2 * batch * weights / rates[1])


def prompts_of(net, n):
    size = net.config.vocab_size
    return [[1 + (i * 7 + j * 13) % (size - 1) for j in range(PROMPT)] for i in range(n)]


def sampled(net, batch, new, **how):
    return engine.sample(net, prompts_of(net, batch), max_new_tokens=new, stop=(),
                         batch_size=batch, **how)


def generated(net, batch, new, **how):
    ids = torch.tensor(prompts_of(net, batch), device=net.device)
    with torch.no_grad():
        out = net.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                           max_new_tokens=new, eos_token_id=None, **how)
    if out.shape[1] != PROMPT + new:
        raise RuntimeError(f"generate drew {out.shape[1] - PROMPT} tokens, not {new}")


def against_generate(part, cells, **how):
    """Seconds of the engine and of `generate` with these options, for (shape, batch) cells."""
    rates, net, built = part.rates(), None, None
    for name, batch in cells:
        if name != built:
            net = None
            part.fresh_memory()
            net, built = part.build(name), name
        new = 8 if part.tiny else 250 if name == "lab" else 128
        found = {"shape": name, "batch": batch, "new_tokens": new, "generate": how or "as it is"}
        jobs = {"engine": lambda net=net, batch=batch, new=new: sampled(net, batch, new),
                "generate": lambda net=net, batch=batch, new=new: generated(
                    net, batch, new, **how)}
        for who, job in jobs.items():
            part.fresh_memory()
            try:
                if who == "engine":
                    found["engine_s"] = part.seconds(job, 2)
                else:  # a compiled pass depends on the length of the cache, another does not
                    found["generate_s"] = part.seconds(job, 1, bool(how) or (
                        lambda net=net, batch=batch: generated(net, batch, 4)))
            except MemoryError as error:
                found[f"{who}_error"] = str(error)
                continue
            except torch.OutOfMemoryError as error:
                found[f"{who}_error"] = str(error).splitlines()[0]
                continue
            found[f"{who}_tokens_per_s"] = batch * new / found[f"{who}_s"]
            found[f"{who}_share_of_floor"] = new * floor(
                net, batch, PROMPT + new / 2, rates) / found[f"{who}_s"]
            found[f"{who}_peak_gib"] = part.peak_gib()
        if "engine_s" in found and "generate_s" in found:
            found["speedup"] = found["generate_s"] / found["engine_s"]
        part.fact(**found)


def tests(part):
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        files = ["tests/test_device.py", "tests/test_gpu.py", "tests/test_engine.py"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}",
             "-p", "no:cacheprovider", *files[:1 if part.tiny else 3]], cwd=ROOT)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode} and wrote no report")
        for case in xml.parse(report).iter("testcase"):
            bad = next((x for x in case if x.tag in ("failure", "error", "skipped")), None)
            part.fact(test=case.get("name"), outcome="passed" if bad is None else bad.tag,
                      s=float(case.get("time")), said="" if bad is None else
                      bad.get("message", "")[:400])


def decode(part):
    against_generate(part, [
        *(("qwen2.5-7b", n) for n in (1, 32, 256)), *(("lab", n) for n in (1, 32, 256, 1024)),
        *(("qwen2.5-1.5b", n) for n in (1, 32, 256, 1024)), ("qwen2.5-7b", 1024),
        *(("qwen2.5-0.5b", n) for n in (1, 32, 256, 1024))] if not part.tiny else [
        ("qwen2.5-7b", 1), ("lab", 4)])


def compiled(part):
    # On a GPU transformers compiles the one-token forward where the cache is static.
    against_generate(part, [("lab", 256), ("qwen2.5-7b", 1), ("lab", 1), ("qwen2.5-1.5b", 32),
                            ("qwen2.5-0.5b", 1), ("qwen2.5-1.5b", 1), ("qwen2.5-1.5b", 256)]
                     if not part.tiny else [("lab", 2)], cache_implementation="static")


def steering(part):
    for name, batch in ([("qwen2.5-1.5b", 1), ("qwen2.5-1.5b", 32), ("lab", 256), ("lab", 1)]
                        if not part.tiny else [("lab", 4)]):
        base, guide = part.build(name), part.build(name, 1)
        new, c = 8 if part.tiny else 128, base.config
        layer, size = c.num_hidden_layers // 2, c.hidden_size
        vectors = torch.randn(4, size, generator=torch.Generator().manual_seed(0)) / size
        opens = torch.arange(c.vocab_size, device=part.device)
        table = torch.where(opens % 9 == 0, opens % 4, -1)  # one token in nine opens a step
        constant = engine.Control([engine.Steer(layer, vectors[0])])

        def together(base=base, guide=guide, layer=layer, vectors=vectors, table=table,
                     batch=batch, new=new):
            gate = hybrid.Gate(hybrid.Oracle(taxonomy.Openings(table)), 4)
            sampled(base, batch, new, control=engine.Control(
                [engine.Steer(layer, vectors, gate=gate)], [guide]))

        jobs = {"base": lambda base=base, batch=batch, new=new: sampled(base, batch, new),
                "steered": lambda base=base, batch=batch, new=new, constant=constant:
                    sampled(base, batch, new, control=constant),
                "guide": lambda guide=guide, batch=batch, new=new: sampled(guide, batch, new),
                "hybrid": together}
        rounds = [{who: part.seconds(job, warm=not i) for who, job in jobs.items()}
                  for i in range(1 if part.tiny else 5)]
        steered = [x["steered"] / x["base"] for x in rounds]
        summed = [x["hybrid"] / (x["base"] + x["guide"]) for x in rounds]
        part.fact(shape=name, batch=batch, new_tokens=new,
                  **{f"{who}_s": statistics.median(x[who] for x in rounds) for who in jobs},
                  steered_over_base=statistics.median(steered), steered_low=min(steered),
                  steered_high=max(steered), hybrid_over_sum=statistics.median(summed),
                  hybrid_low=min(summed), hybrid_high=max(summed))


def rl_step(part):
    problems, samples, new = (8, 8, 256) if not part.tiny else (2, 2, 8)
    net = model.adapter(part.build("qwen2.5-1.5b"), 8, 0)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-4)
    prompts = prompts_of(net.get_base_model(), problems)
    for name in ("first", "second", "third"):
        part.fresh_memory()
        part.wait()
        start = time.perf_counter()
        plain = model.merged(net)
        part.wait()
        merged = time.perf_counter()
        out = engine.sample(plain, prompts, samples, max_new_tokens=new, stop=()).ids()
        del plain
        part.wait()
        middle = time.perf_counter()
        gain = rl.advantages([float(i % 3 == 0) for i in range(len(out))], samples)
        rl.update(net, optimizer, [prompts[i // samples] + ids for i, ids in enumerate(out)],
                  [PROMPT] * len(out), gain, 8192, finetune.own_logits)
        part.wait()
        part.fact(shape="qwen2.5-1.5b", step=name, rollouts=len(out), new_tokens=new,
                  merge_s=merged - start, sampling_s=middle - merged,
                  update_s=time.perf_counter() - middle, peak_gib=part.peak_gib())


def lab_step(part, seed, rows, steps):
    """A function that takes `steps` pre-training steps of the lab's model on `rows` documents of 64
    tokens."""
    net = model.build(LAB, seed).to(part.device).train()
    optimizers = model.optimizer(net, 0.02, 0.003, 0.01)
    ids = torch.randint(4, 100, (rows, 65), generator=torch.Generator().manual_seed(seed))
    ids = ids.to(part.device)

    def job():
        for _ in range(steps):
            pretrain.loss(net, ids).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for o in optimizers:
                o.step()
                o.zero_grad()
    return job


def beside(device, tiny, seed, barrier, done, rows, steps):
    """One of several processes that train at the same time: its seconds go to the queue."""
    part = Part.__new__(Part)  # without a file
    part.device, part.tiny = torch.device(device), tiny
    torch.set_num_threads(1)
    job = lab_step(part, seed, rows, steps)
    job()
    barrier.wait(60)
    done.put(part.seconds(job, warm=False))


def train(part):
    steps, sizes = (20, (192, 1024, 8192)) if not part.tiny else (2, (8,))
    for rows in sizes:  # the lab's own step has 12,288 tokens
        part.fresh_memory()
        s = part.seconds(lab_step(part, 0, rows, steps), 3) / steps
        part.fact(shape="lab", tokens_a_step=rows * 64, seeds=1, step_s=s,
                  tokens_per_s=rows * 64 / s, peak_gib=part.peak_gib())
    # A process that has used the GPU cannot fork; without one a fork need not import anything.
    context = multiprocessing.get_context("spawn" if part.device.type == "cuda" else "fork")
    seeds = 10 if not part.tiny else 2
    barrier, done = context.Barrier(seeds), context.Queue()
    workers = [context.Process(target=beside, daemon=True, args=(
        str(part.device), part.tiny, seed, barrier, done, sizes[0], steps))
        for seed in range(seeds)]
    for worker in workers:
        worker.start()
    slowest = max(done.get(timeout=90) for _ in workers)
    for worker in workers:
        worker.join()
    part.fact(shape="lab", tokens_a_step=sizes[0] * 64, seeds=seeds, step_s=slowest / steps,
              tokens_per_s=seeds * sizes[0] * 64 * steps / slowest)


PARTS = {"tests": tests, "decode": decode, "steering": steering, "rl": rl_step, "train": train,
         "compiled": compiled}


def run(name, device, tiny, out):
    """One part in this process."""
    part = Part(name, device, tiny, out)

    def keep(message, *args, **how):
        if str(message) not in part.content["warnings"]:
            part.content["warnings"].append(str(message))
            print(f"{name}: warning: {message}", flush=True)
    with warnings.catch_warnings():
        warnings.showwarning = keep
        PARTS[name](part)
    part.content["complete"] = True
    part.write()
    return part.content


def run_all(options, limits):
    """Each part in a process of its own; the names of those that failed or ran past their limit."""
    bad = []
    for name in PARTS:
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, __file__, name, *options],
                                 process_group=0)
        try:
            code = child.wait(limits[name])
        except subprocess.TimeoutExpired:
            code = f"none within {limits[name]} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # with the processes that it started
                child.wait()
        print(f"{name}: {time.perf_counter() - start:.0f} s, exit code {code}", flush=True)
        bad += [name] if code else []
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: the numbers mean nothing")
    parser.add_argument("--out", default=os.environ.get("OUT") or "results/gpu")
    args = parser.parse_args()
    if args.part:
        run(args.part, args.device, args.tiny, args.out)
        return 0
    options = ["--device", args.device, "--out", args.out, *(["--tiny"] if args.tiny else [])]
    return 1 if run_all(options, LIMITS) else 0


if __name__ == "__main__":
    sys.exit(main())
