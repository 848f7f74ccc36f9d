"""Chapter 7's models: RL on bases whose pre-training lacked a thing, or held little of it.

    python -m locksmith.experiments.ladders --profile lab --family countdown

A rung is a base and what the lab's RL makes of it, one of each a seed. The ladders:

    exposure  how much of a behaviour the base has read, all else equal, the same in tokens:
              Countdown  share of go-ons after a failed check that are backtracks
              chain      share of documents about problems deeper than one that write all steps
    start     a base of lower exposure also starts lower and gives RL fewer groups with contrast:
              easier     RL on the 0 rung with problems on which it starts as the full base does
              harder     RL on the full base with problems on which it starts as the 0 rung does
              contrast   RL on the 0 rung with groups that all have contrast, as many as RL can use
              plateau    RL on the 0 rung for several times the steps
    skill     RL from the full base's pre-training at a share of its way
    depth     chain alone; the edge is one deeper than any problem of pre-training:
              range      RL within range: the ordinary model
              mixed      RL on problems in range and at the edge, in turns
              edge       RL on problems at the edge
              taught     no RL: the base fine-tuned on right workings of the same edge problems
              read       RL at the edge from a base that has read a share of edge problems

The full rungs are the lab's own base and RL model of these seeds, and Countdown's 0 rung has the
lab's twin for its base.
"""

from typing import NamedTuple

from locksmith import params, results
from locksmith.loading import Pair
from locksmith.tasks import chain


class Rung(NamedTuple):
    """A base and what training makes of it, for every seed of the ladders.

    ladder, value: which ladder, and the place on it: a share, or a word. base, thinking: names of
    the models, as `loading` takes them. corpus: what the base's corpus changes of the family's
    generator. rl: how its RL differs from the lab's.
    """
    profile: str
    family: str
    ladder: str
    value: float | str
    base: str
    thinking: str
    corpus: dict
    rl: dict

    @property
    def name(self) -> str:
        """"exposure-0.01", "start-easier"."""
        value = self.value if isinstance(self.value, str) else f"{self.value:g}"
        return f"{self.ladder}-{value}"

    def pair(self, seed: int) -> Pair:
        """Base and trained model of a seed, on the family's problems."""
        return Pair(self.profile, self.family, seed, self.base, self.thinking)

    def curve(self, seed: int) -> list[dict]:
        """What `rl.learn` noted of each step of a seed's RL; [] of a model without RL. From the
        records, so that it is there without checkpoints. BadInput where no record is there."""
        own = _config(self.profile)["profile"]
        if self.thinking == "lab/thinking":
            curve = results.read(own, f"train/{self.family}_rl")["extra"]["curve"]
            return [point for point in curve if point["seed"] == seed]
        logs = results.read(own, f"train/{self.family}_ladders")["extra"]["logs"]
        return logs[f"{self.name} {seed}"].get("curve", [])


def rungs(profile: str, family: str) -> list[Rung]:
    """Every rung of a family, ladder by ladder, from the lowest up."""
    config = _config(profile)
    own = config["ladders"]
    found = []

    def add(ladder, value, base="", thinking="", corpus=None, rl=None):
        rung = Rung(profile, family, ladder, value, base, thinking, corpus or {}, rl or {})
        found.append(rung._replace(base=base or f"lab/ladders/{rung.name}/base",
                                   thinking=thinking or f"lab/ladders/{rung.name}/rl"))
        return found[-1]

    dial = {"countdown": "backtrack", "chain": "whole"}[family]
    for share in sorted(own["exposures"]):
        changes = {dial: share}
        twin = family == "countdown" and changes == config["twin"]
        add("exposure", share, "lab/twin" if twin else "", corpus=changes)
    nothing = found[0]
    add("exposure", full_exposure(profile, family), "lab/base", "lab/thinking")
    add("start", "easier", nothing.base, corpus=nothing.corpus, rl={"problems": "easier"})
    add("start", "harder", "lab/base", rl={"problems": "harder"})
    add("start", "contrast", nothing.base, corpus=nothing.corpus, rl={"contrast": True})
    add("start", "plateau", nothing.base, corpus=nothing.corpus, rl={"steps": own["plateau"]})
    for share in sorted(own["skills"]):
        add("skill", share)
    add("skill", 1.0, "lab/base", "lab/thinking")
    if family == "chain":
        add("depth", "range", "lab/base", "lab/thinking")
        add("depth", "mixed", "lab/base", rl={"problems": "mixed"})
        add("depth", "edge", "lab/base", rl={"problems": "edge"})
        add("depth", "taught", "lab/base", "lab/ladders/depth-taught/sft",
            rl={"problems": "edge"})
        depths = _with_edge(config["families"]["chain"], own["edge_share"])
        add("depth", "read", corpus={"depths": depths}, rl={"problems": "edge"})
    return found


def full_exposure(profile: str, family: str) -> float:
    """The exposure of the lab's own base, on the axis of its ladder."""
    generator = _config(profile)["families"][family]
    return generator["backtrack"] if family == "countdown" else chain.whole_share(generator)


def edge(generator: dict) -> int:
    """The depth of chain problems one deeper than any that a corpus of the generator holds."""
    return max(generator["depths"]) + 1


def _with_edge(generator, share):
    """`depths` of which the edge is a share, and the others in their old proportions."""
    turns = round((1 - share) / (share * len(generator["depths"])))
    return [*(depth for depth in generator["depths"] for _ in range(turns)), edge(generator)]


def _config(profile):
    """The parameters of the profile whose checkpoints `profile` uses."""
    return params.load(params.load(profile)["checkpoints"])
