"""The post as a folder to publish from: Markdown, one HTML page, its figure, a card to share.

    python -m locksmith.book.post build      writes build/post/ and prints its path

What it says is written in post.md and checked in `locksmith.book.sentences`. Nothing here reads a
clock: the same facts and figures give the same bytes.
"""

import argparse
import base64
import html
import shutil
import textwrap
from pathlib import Path

from markdown_it import MarkdownIt

from locksmith import errors
from locksmith.book import about, formats, integrity, plots, site
from locksmith.book.sentences import FAMILIES, FOUR, PROFILE, PostError, Writer, description

MANY = 64  # answers of the base, of which one is sound
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
{tags}
<link rel="icon" href="data:image/svg+xml;base64,{icon}">
<style>
body {{ margin: 0; background: #fff; color: #222; font: 18px/1.6 Georgia, serif }}
main {{ max-width: 720px; margin: auto; padding: 24px }}
h1, h2 {{ font-family: system-ui, sans-serif; line-height: 1.25 }}
img {{ width: 100% }}
a {{ color: #0a5a94; overflow-wrap: anywhere }}
table {{ border-collapse: collapse; width: 100%; font: 14px/1.4 system-ui, sans-serif }}
td, th {{ border-bottom: 1px solid #ddd; padding: 6px 8px; text-align: left;
  vertical-align: top }}
</style>
<main>
<img src="card.png" alt="{alt}">
{body}</main>
</html>
"""


def build(root: str | Path = ".") -> Path:
    """Write build/post/ whole or not at all, and return it.

    Raises PostError for a sentence that does not hold, an unknown name, a length not in WORDS.
    """
    root = Path(root)
    home = site.address(root / "_config.yml")
    integrity.check(PROFILE, root)
    for path in sorted(root.glob(f"build/notebooks/{PROFILE}/*.ipynb")):
        integrity.executed(path.relative_to(root).as_posix(), root)
    writer = Writer(root, lambda page: f"{home}{page}.html", lambda path: path.name)
    text = writer.render(whole=True)
    folder = root / "build" / "post"
    temporary = folder.with_name(".post.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for path in writer.figures:
            shutil.copyfile(path, temporary / path.name)
        card(writer, headline(text), temporary / "card.png")
        (temporary / "post.md").write_text(text, encoding="utf-8")
        (temporary / "post.html").write_text(PAGE.format(
            title=html.escape(headline(text), quote=False),
            body=MarkdownIt().enable("table").render(text),
            alt=html.escape(description(temporary / "card.png")),
            icon=base64.b64encode((root / about.ICON).read_bytes()).decode(),
            tags=about.tags(headline(text), lead(text), url=f"{home}post.html",
                            card=(home + about.CARD, description(temporary / "card.png")))),
            encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def headline(text: str) -> str:
    """The title of the post, of which `text` is the Markdown."""
    return text.splitlines()[0].removeprefix("# ")


def lead(text: str) -> str:
    """Its first paragraph without marks, as a description."""
    tokens = MarkdownIt().parse(text)
    first = next(i for i, token in enumerate(tokens) if token.type == "paragraph_open")
    return about.shortened("".join(part.content or " " for part in tokens[first + 1].children))


# ------------------------------------------------------------------------------------------------
# The card


def card(writer: Writer, title: str, path: Path) -> None:
    """A PNG of 1200 x 627: the title, the count of verdicts, and what the text says of its figure:
    sound answers before and after RL, and among many samples of the base."""
    families = writer.families("02")
    if not families:
        raise PostError(f"The card shows chapter 02, which has no results in {PROFILE!r}.")
    fig, axes = plots.figure(width=6, height=3.135)  # plots.save draws 200 dots an inch
    spelled = []
    for row, (family, models) in enumerate(families.items()):
        for model, marker, k in (("base", "o", 1), ("base", "s", MANY), ("thinking", "D", 1)):
            fact = models[model][f"trace_pass_at_k[k={k}]"]
            share, *ends = (fact[key] for key in ("value", "low", "high"))
            value, ends = 100 * share, [100 * end for end in ends]
            label = f"{'after' if model == 'thinking' else 'before'} RL, " + (
                "one answer" if k == 1 else f"one of {k} answers")
            color = plots.look(model)["color"]
            axes.plot(ends, [row, row], lw=6, alpha=0.35, color=color, solid_capstyle="butt")
            axes.plot(value, row, marker, ms=8, color=color, label=None if row else label)
            axes.annotate(formats.percent(share), (value, row), (0, 9), textcoords="offset points",
                          ha="center", fontsize=10)
            spelled.append(f"{FAMILIES.get(family, family)}, {label}: {formats.percent(share)}")
    axes.set(xlim=(-4, 106), ylim=(len(families) - 0.5, -0.6), yticks=range(len(families)),
             yticklabels=[FAMILIES.get(family, family) for family in families],
             xlabel="problems with a sound answer, %")
    axes.grid(axis="y", visible=False)
    axes.spines[["left", "top", "right"]].set_visible(False)
    fig.suptitle(textwrap.fill(title, 30), x=0.02, ha="left", fontsize=16, fontweight="bold")
    fig.legend(loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=1, fontsize=9)
    count = f"Four claims, tested in a lab: {writer.tally(*FOUR)}"
    axes.set_title(count, fontsize=10)
    plots.save(fig, path, f"{title}. {count}. Problems with a sound answer, 95 % intervals. "
                          f"{'; '.join(spelled)}.")


# ------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m locksmith.book.post",
                                     description=build.__doc__.splitlines()[0])
    parser.add_argument("command", choices=["build"])
    parser.parse_args()
    print(build().resolve())


if __name__ == "__main__":
    errors.run(main)
