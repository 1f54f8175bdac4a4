"""What the steps print when they have ended: counts, and the first problems."""

from pathlib import Path

from blip.command_line import say


def say_counts(*counts: tuple[int, str]) -> None:
    """Prints the counts that are not zero, each with its name."""
    for count, what in counts:
        if count:
            say(f"{count} {what}")


def say_problems(problems: list[str], out: Path) -> None:
    """Prints the first few problems, and where the others are listed."""
    for problem in problems[:5]:
        say(f"  {problem}")
    if len(problems) > 5:
        say(f"  and more: {out.with_name(f'{out.name}.summary.json') if out.suffix == '.jsonl' else out}")
