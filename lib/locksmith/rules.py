"""Which rules stood when a run was made: a digest of each rule of claims.yml, kept in each result.

A verdict reads a result by a rule only if the result's run knew that rule, so that no rule can be
written for numbers that are there already. Words of the file may change; a comparison, the kind of
its part, the families that it is asked of and how much evidence it needs may not.
"""

import hashlib
import json
from pathlib import Path

from locksmith import plain_yaml


def digest(needs: dict, claim_id: str, part: dict) -> str:
    """12 hex digits of one part of a claim: part has id, kind, rule and may have families; needs:
    as in claims.yml."""
    told = [needs, claim_id, part.get("id"), part.get("kind"), str(part.get("rule")).split(),
            part.get("families")]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def standing(path: str | Path = "claims.yml") -> list[str]:
    """The digests of all rules in the file, sorted; none where there is no file."""
    if not Path(path).exists():
        return []
    book = plain_yaml.parse(plain_yaml.text(path), path)
    return sorted(digest(book["needs"], claim["id"], part)
                  for claim in book["claims"] for part in claim["parts"])
