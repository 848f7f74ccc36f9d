"""The glossary: what terms and arms mean, as a page, and at their first use on every other page.

terms.yml explains terms, arms.yml arms. As a Sphinx extension this module also shows the reference
behind a citation. An explanation shows where its word is pointed at or reached by the tab key, by
style sheet alone; screen readers read it as the link's description.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes

from locksmith import arms, errors, plain_yaml

PAGE = "glossary"
# Where a word is not prose, or a link already.
ELSEWHERE = (nodes.reference, nodes.title, nodes.rubric, nodes.literal, nodes.literal_block,
             nodes.math, nodes.math_block, nodes.table, nodes.caption, nodes.raw, nodes.term,
             nodes.citation)


class Term(NamedTuple):
    """A word, what it means in a sentence or two, and every form (itself first) of it."""

    name: str
    says: str
    forms: tuple[str, ...]


def load(root: str | Path = ".") -> tuple[list[Term], list[Term]]:
    """The terms of terms.yml and the arms of arms.yml, each in its file's order.

    BadInput where terms.yml is of another form, or two entries have a form in common.
    """
    path = Path(root) / "terms.yml"
    text = plain_yaml.text(path)
    book, known = plain_yaml.parse(text, path), arms.load(Path(root) / "arms.yml")
    if not (isinstance(book, dict) and set(book) == {"terms", "arms"}
            and all(isinstance(part, dict) for part in book.values())):
        raise errors.BadInput(f"{path} must hold terms and arms, both mappings, and nothing else.")
    terms = [_term(name, entry, f"{path}, line {plain_yaml.line(text, 'terms', name)}: {name!r}")
             for name, entry in book["terms"].items()]
    for name, forms in book["arms"].items():
        where = f"{path}, line {plain_yaml.line(text, 'arms', name)}"
        if name not in known or not _texts(forms):
            raise errors.BadInput(f"{where}: {name!r} needs to be an arm of arms.yml, with a list "
                                  "of the forms that pages write.")
    of_arms = [Term(arm.label, arm.says,
                    (*[arm.label] * (" " in arm.label), *book["arms"].get(arm.id, ())))
               for arm in known.values()]
    owners = {}
    for term in [*terms, *of_arms]:
        for form in {form.lower() for form in (term.name, *term.forms)}:
            if form in owners:
                raise errors.BadInput(f"{path}: {form!r} is a form of {owners[form]!r} and of "
                                      f"{term.name!r}; allowed is one.")
            owners[form] = term.name
    return terms, of_arms


def _texts(given):
    return isinstance(given, list) and all(isinstance(x, str) and x.strip() for x in given)


def _term(name, entry, where):
    if (not isinstance(entry, dict) or not {"says"} <= set(entry) <= {"says", "also"}
            or not _texts([entry["says"]]) or not _texts(entry.get("also", []))):
        raise errors.BadInput(f"{where} needs says, a text, and may have also, a list of texts.")
    return Term(name, entry["says"].strip(), (name, *entry.get("also", ())))


def substitutions(root: str | Path = ".") -> dict[str, str]:
    """What the page may write between double braces (Markdown): glossary_terms, glossary_arms and
    glossary_roles."""
    terms, of_arms = load(root)
    roles = plain_yaml.read(Path(root) / "arms.yml")["roles"]
    told = [f"{name} ({role['says']})" for name, role in roles.items()]
    return {"glossary_terms": _definitions(sorted(terms, key=lambda term: term.name.lower())),
            "glossary_arms": _definitions(of_arms),
            "glossary_roles": f"{', '.join(told[:-1])} and {told[-1]}"}


def _definitions(terms: Iterable[Term]) -> str:
    entries = "\n\n".join(f"{term.name}\n  {term.says}" for term in terms)
    return f"```{{glossary}}\n{entries}\n```"


# ------------------------------------------------------------------------------------------------
# A Sphinx extension


class explained(nodes.Inline, nodes.TextElement):  # noqa: N801, as docutils writes its nodes
    """A link (refuri) with an explanation (says), of which `ident` is the id on its page."""


def _visit(translator, node):
    translator.body.append(f'<a class="{" ".join(["tip", *node["classes"]])}" '
                           f'href="{translator.attval(node["refuri"])}" '
                           f'aria-describedby="{node["ident"]}">')


def _depart(translator, node):
    translator.body.append(f'</a><span class="says" role="tooltip" id="{node["ident"]}">'
                           f'{translator.encode(node["says"])}</span>')


def explain(app: Any, doctree: nodes.document, docname: str) -> None:
    """Sphinx calls this for every page: explains citations, and terms at their first use."""
    if app.builder.name != "html" or PAGE not in app.env.found_docs:
        return
    for reference in list(doctree.findall(nodes.reference)):
        if says := reference.get("reftitle"):
            address = reference.get("refuri") or f"#{reference['refid']}"
            reference.replace_self(explained("", "", *reference.children, says=says,
                                             refuri=address))
    if docname != PAGE:
        _explain_terms(app, doctree, docname)
    for number, found in enumerate(doctree.findall(explained)):
        found["ident"] = f"tip-{number}"


def _explain_terms(app, doctree, docname):
    known = {form.lower(): term for part in load(app.srcdir) for term in part
             for form in term.forms}
    forms = sorted(known, key=len, reverse=True)  # "sound trace" before "trace"
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(_spaced, forms))})(?![\w-])", re.I)
    anchors = app.env.get_domain("std").objects
    page = app.builder.get_relative_uri(docname, PAGE)
    seen = set()
    for text in [text for text in doctree.findall(nodes.Text) if _prose(text)]:
        made, at = [], 0
        for match in pattern.finditer(text):
            term = known[" ".join(match[0].lower().split())]
            if term.name not in seen:
                seen.add(term.name)
                anchor = anchors["term", term.name][1]
                made += [nodes.Text(text[at:match.start()]),
                         explained("", match[0], says=term.says, classes=["term"],
                                   refuri=f"{page}#{anchor}")]
                at = match.end()
        if made:
            text.parent.replace(text, [*made, nodes.Text(text[at:])])


def _spaced(form):
    """A pattern of a form that may be broken over lines."""
    return r"\s+".join(map(re.escape, form.split()))


def _prose(text):
    """Whether a text stands in a paragraph, and nowhere that ELSEWHERE names."""
    node, within = text.parent, False
    while node is not None:
        if isinstance(node, (*ELSEWHERE, explained)):
            return False
        within = within or isinstance(node, nodes.paragraph)
        node = node.parent
    return within


def setup(app: Any) -> dict:
    """Sphinx calls this when _config.yml names the module among its extensions."""
    app.add_node(explained, html=(_visit, _depart))
    app.connect("doctree-resolved", explain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
