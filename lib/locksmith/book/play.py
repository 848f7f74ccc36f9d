"""The files behind the page "Turn the key yourself", laid out beside it.

A page that somebody opens as a file may load scripts, but fetch nothing: so weights and numbers
become scripts here. The weights are those that the stage `play` of the pipeline exported; where it
has not run, the page says so.
"""

import base64
import json
import shutil
from pathlib import Path

from locksmith import arms, errors, plain_yaml
from locksmith.book import claims, formats

SCRIPTS = "play"  # the folder of the page's own scripts and styles
EXPORTED = Path("build/play")
SHOWN = ("base", "thinking", "guess")  # whose pass@k the page shows


def lay_out(profile: str, root: Path, out: Path) -> None:
    """Fill the new folder `out`: the page's scripts, a script with the weights of each exported
    model, and made.js: the exported header, or null, and pass@k as results/facts.csv has it.
    BadInput where the export is not whole."""
    shutil.copytree(root / SCRIPTS, out)
    header, weights = _exported(root / EXPORTED / profile)
    for name, content in weights.items():
        text = base64.b64encode(content).decode()
        (out / f"{name}.js").write_text(f'locksmithWeights.{name} = "{text}";\n')
    made = json.dumps({"header": header, "pass_at_k": pass_at_k(profile, root)})
    (out / "made.js").write_text(f"const locksmithMade = {made};\n", encoding="utf-8")


def _exported(folder):
    """(header, {model: content of its file}) as the stage left them; (None, {}) where it has not
    run."""
    if not folder.is_dir():
        return None, {}
    try:
        header = json.loads(plain_yaml.text(folder / "header.json"))
        return header, {name: (folder / f"{name}.bin").read_bytes() for name in header["models"]}
    except (ValueError, LookupError, TypeError, RecursionError, FileNotFoundError):
        raise errors.BadInput(f"{folder} is not as the stage `play` left it; `dvc repro play` "
                              "makes it again.") from None


def pass_at_k(profile: str, root: Path) -> list[dict]:
    """Chapter 2's curves in Countdown: label, problems, seeds and points, a list of {k, value, low,
    high, text} from the smallest k on. Arms that were not measured are left out."""
    known, out = arms.load(root / "arms.yml"), []
    for arm in SHOWN:
        rows = [row for row in claims.facts(root / "results" / "facts.csv")
                if (row["profile"], row["chapter"], row["family"], row["model"]) ==
                (profile, "02", "countdown", arm)
                and row["quantity"] == f"pass_at_k[k={row.get('k')}]"]
        if rows:
            points = [{**{key: row[key] for key in ("k", "value", "low", "high")},
                       "text": formats.percents((row["value"], row["low"], row["high"]))}
                      for row in sorted(rows, key=lambda row: row["k"])]
            out.append({"label": known[arm].label, "problems": rows[0]["n_problems"],
                        "seeds": rows[0]["seeds"], "points": points})
    return out
