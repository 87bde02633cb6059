"""docs/learn.md, made of the exercises."""

from __future__ import annotations

from learn.exercises import EXERCISES
from stack.settings import ROOT

PAGE = ROOT / "docs/learn.md"
HEAD = """# How does a server accept connections?

Ten exercises. Guess the answer, run the command, and compare: each takes less than 20 seconds, on servers of its own on
loopback. `make learn` lists them. `python -m learn --write-docs` wrote this page.
"""
END = """
## And now all of it

Put your own app in ([your app](your-app.md)), start it with `make up`, load it with `make loadtest`, and type
`make deploy` meanwhile. The report has no failed request. [Zero loss](zero-loss.md) says how.
"""


def page() -> str:
    text = HEAD
    for number, each in enumerate(EXERCISES, 1):
        rows = ", ".join(f"`{row}`" for row in each.settings)
        text += (
            f"\n## {number}. {each.title}\n\n{each.question}\n\n```sh\nmake learn N={number}\n```\n\n"
            f"<details><summary>What happens, and why</summary>\n\n**{each.claim}** {each.why}\n\n"
            f"In `.env`: {rows}. More: [{each.page.partition('.')[0]}]({each.page}).\n\n</details>\n"
        )
    return text + END
