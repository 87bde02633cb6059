"""`make learn`: the exercises in a list, or one of them (N=3), or all (N=all)."""

from __future__ import annotations

import sys

from learn.exercises import EXERCISES, Exercise
from learn.page import PAGE, page


def main() -> int:
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    if asked == "--write-docs":
        PAGE.write_text(page())
        return 0
    if not asked:
        print("How does a server accept connections? Guess first, then: make learn N=1\n")
        print("\n".join(f"{number:3}  {each.title}" for number, each in enumerate(EXERCISES, 1)))
        return 0
    numbers = {str(number): each for number, each in enumerate(EXERCISES, 1)}
    if asked != "all" and asked not in numbers:
        print(f"N={asked}: must be a number from 1 to {len(EXERCISES)}, or all", file=sys.stderr)
        return 2
    failed = 0
    for number, exercise in numbers.items() if asked == "all" else [(asked, numbers[asked])]:
        failed |= show(number, exercise)
    return failed


def show(number: str, exercise: Exercise) -> int:
    """Ask, run, tell. 1 where the run has not shown what the claim says."""
    print(f"{number}. {exercise.title}\n\n{exercise.question}")
    if sys.stdin.isatty():
        input("\nWhat do you think? Press Enter to see. ")
    seen = exercise.run()
    print("\n" + "\n".join(f"   {line}" for line in seen.lines) + "\n")
    if not seen.holds:
        print(f"This run has not shown it; is the machine very busy? The claim: {exercise.claim}")
        return 1
    print(
        f"{exercise.claim}\n\n{exercise.why}\n\nIn .env: {', '.join(exercise.settings)}. More: docs/{exercise.page}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
