"""One step of RL by TRL's GRPOTrainer and by `locksmith.rl`, in turn, in one run.

A step is rollouts, grades and update of a lab-sized model on the same problems with the same stop
tokens and cap, by default in the numbers of the profile. A random model stops after 72 tokens on
average, about as long as the lab's traces. Rewards are 0 and 1 in turn, so that both learn from
every rollout (a step of the lab skips groups without contrast, TRL pays for them). TRL runs without
reference model and gradient checkpointing, in three ways:
    fp32         weights in fp32 under bf16 autocast, as precise as ours
    bf16         weights in bf16 as well, which rounds small updates away
    fp32_engine  as fp32, with rollouts from our engine through the experimental `rollout_func`
Seconds are CPU seconds of the one thread, which other work on the machine disturbs least.
`speedup_vs_trl` compares sampled tokens a second: median of the steps but for the first, low and
high their extremes. Needs `pip install trl datasets`; writes results/<profile>/bench_trl.json.
"""

import argparse
import importlib.metadata
import statistics
import tempfile
import time

import datasets
import torch
import trl
from locksmith import corpus, engine, model, params, results, rl, vocabulary
from transformers import TrainerCallback


class InTurn(TrainerCallback):
    """Times TRL's steps and calls `ours` after each: pairs of (seconds, sampled tokens)."""

    def __init__(self, ours):
        self.ours, self.pairs, self.sampled = ours, [], 0

    def on_step_begin(self, *_, **__):
        self.start = time.process_time()

    def on_step_end(self, *_, **__):
        theirs = time.process_time() - self.start, self.sampled
        self.pairs.append((self.ours(len(self.pairs)), theirs))


def compare(config, family, way, shape, steps, folder):
    """A pair of (seconds, tokens) a step, ours and TRL's; the first one warms up."""
    problems_a_step, samples, cap = shape
    task = corpus.FAMILIES[family]
    problems = task.problems("train", problems_a_step, 0, config["families"][family])
    by_prompt = {" ".join(p.prompt): p for p in problems}
    rewards = [float(i % 2) for i in range(problems_a_step * samples)]
    net = model.build(config["model"], 0).train()
    sampler = model.build(config["model"], 0).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, weight_decay=0.0)

    def ours(step):
        start = time.process_time()
        sampler.load_state_dict(net.state_dict())
        sequences, lengths, _ = rl.rollout(sampler, task, problems, samples, cap, step)
        rl.update(net, optimizer, sequences, lengths, rl.advantages(rewards, samples),
                  config["rl"]["micro_tokens"])
        return time.process_time() - start, sum(map(len, sequences)) - sum(lengths)

    turns = InTurn(ours)

    def reward(prompts, completion_ids, **_):
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            task.grade(by_prompt[prompt], vocabulary.decode(ids))
        turns.sampled = sum(map(len, completion_ids))
        return rewards

    other = model.build(config["model"], 0)
    if way == "bf16":
        other.to(torch.bfloat16)
    twin = model.build(config["model"], 0).to(torch.bfloat16)

    def rollouts(prompts, trainer):
        twin.load_state_dict(other.state_dict())
        ids = [vocabulary.encode(p.split()) for p in prompts]
        out = engine.sample(twin, ids[::samples], samples, max_new_tokens=cap, stop=vocabulary.STOP,
                            seed=len(turns.pairs))
        return {"prompt_ids": ids, "completion_ids": out.ids(), "logprobs": None}

    other.generation_config.eos_token_id = list(vocabulary.STOP)
    args = trl.GRPOConfig(
        folder, max_steps=steps + 1, learning_rate=1e-6, per_device_train_batch_size=len(rewards),
        num_generations=samples, max_completion_length=cap, loss_type="dapo", beta=0.0,
        scale_rewards="none", bf16=True, gradient_checkpointing=False, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no")
    data = datasets.Dataset.from_dict({"prompt": list(by_prompt)})
    trl.GRPOTrainer(other, reward, args, data, processing_class=vocabulary.tokenizer(),
                    callbacks=[turns],
                    rollout_func=rollouts if way == "fp32_engine" else None).train()
    return turns.pairs[1:]


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--profile", default="lab")
    args.add_argument("--family", default="countdown", choices=corpus.FAMILIES)
    args.add_argument("--problems", type=int)
    args.add_argument("--samples", type=int)
    args.add_argument("--max-new-tokens", type=int)
    args.add_argument("--steps", type=int, default=3)
    args = args.parse_args()
    torch.set_num_threads(1)
    config = params.load(args.profile)
    shape = [getattr(args, name) or config["rl"][name]
             for name in ("problems", "samples", "max_new_tokens")]
    record = results.Recorder(args.profile, "bench_trl", seeds=[0], n_problems=shape[0],
                              n_samples=shape[1])
    for way in ("fp32", "bf16", "fp32_engine"):
        with tempfile.TemporaryDirectory() as folder:
            pairs = compare(config, args.family, way, shape, args.steps, folder)
        ours, theirs = ([n / s for s, n in side] for side in zip(*pairs, strict=True))
        speedup = [a / b for a, b in zip(ours, theirs, strict=True)]
        for quantity, values in (("tokens_per_second", theirs),
                                 ("tokens_per_second[variant=ours]", ours),
                                 ("speedup_vs_trl", speedup)):
            name = f"trl-{way}".replace("_", "-")
            found = record.fact("rl", name, quantity,
                                (statistics.median(values), min(values), max(values)))
            print("{:16} {:32} {:8.2f} ({:.2f} to {:.2f})".format(name, quantity, *found),
                  flush=True)
    record.extra.update({
        "max_new_tokens": shape[2], "steps": args.steps,
        "trl": importlib.metadata.version("trl")})
    print(record.write())


if __name__ == "__main__":
    main()
