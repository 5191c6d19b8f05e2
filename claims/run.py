"""Measures published claims about weight decay; prints one table, and writes it as a page with a picture per claim.

python -m claims.run                                # all, about three minutes on two cores
python -m claims.run --only=equilibrium,grokking    # some of them
python -m claims.run --docs=docs/claims.md          # all, into the documents (`make claims`)
"""

import pathlib
import time

import console
import intervals
from absl import app, flags, logging

from claims import registry, table
from claims.claim import Claim

_ONLY = flags.DEFINE_list("only", [], "Claims to measure, by the names of their files; all by default.")
_OUT = flags.DEFINE_string("out", "out/claims", "Folder for claims.md and its pictures; created if missing.")
_DOCS = flags.DEFINE_string(
    "docs", None, "In place of --out: claims.md in the documents, where rules/ has pages that show claims, too."
)


def choose(only: list[str]) -> dict[str, Claim]:
    """The claims with these names, or all.

    Raises:
      app.UsageError: for a name without a file.
    """
    claims = registry.load()
    if unknown := set(only) - set(claims):
        raise app.UsageError(f"--only: no claims {', '.join(sorted(unknown))}; there are {', '.join(claims)}")
    return {name: claim for name, claim in claims.items() if not only or name in only}


def main(argv: list[str]) -> None:
    """Runs the claims one after another."""
    del argv
    console.plain()
    if _DOCS.value and _ONLY.value:
        raise app.UsageError("--docs: the page has all claims; drop --only")
    page = pathlib.Path(_DOCS.value) if _DOCS.value else pathlib.Path(_OUT.value, "claims.md")
    claims, found, start = choose(_ONLY.value), {}, time.monotonic()
    rules = list(page.parent.glob("rules/*.md"))
    for rule in rules:  # raises now, and not after all is measured
        table.filled(rule, claims, {name: table.Found(table.unmeasured(claim), "") for name, claim in claims.items()})
    for name, claim in claims.items():
        begun = time.monotonic()
        measured = claim.measure()
        seen = table.draw(name, claim, measured, page.parent / table.PICTURES)
        found[name] = table.Found(table.rows(claim, measured), seen)
        logging.info("%5.1f s  %s", time.monotonic() - begun, name)
    page.write_text(table.page(claims, found))
    for rule in rules:
        rule.write_text(table.filled(rule, claims, found))
    print(table.console(claims, found))
    seconds = f"{time.monotonic() - start:.0f} s, {time.process_time():.0f} s of CPU time"
    print(f"\n{seconds}; {intervals.MEANING}. Page: {page}, pictures: {page.parent / table.PICTURES}")


if __name__ == "__main__":
    app.run(main)
