"""What these programs have in common: rows by name, a table in Markdown, a page, an exit status."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def parse(document: str, names: Sequence[str], **numbers: int) -> argparse.Namespace:
    """Return what the command line asks for: `only` these rows, a folder to `keep`, and whole numbers."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("only", nargs="*", metavar="ROW", help="as --list names them; all by default")
    parser.add_argument("--list", action="store_true", help="name the rows, in quotes where they need some")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave what the rows wrote there")
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, metavar="N")
    options = parser.parse_args()
    if unknown := sorted(set(options.only) - set(names)):
        parser.error(f"no row {unknown[0]!r}; there is: {', '.join(names)}")
    if options.list:
        print("\n".join(names))
        sys.exit()
    return options


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, each row on one line."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])


def finish(table: str, took: str, rows: Iterable, page: Path | None) -> int:
    """Print a table and its rows' deviations; renew a page's table, and return 1 where there are any."""
    print(table, took, sep="\n\n")
    if page:
        introduction, *_ = page.read_text("utf-8").partition("\n| ")
        page.write_text(f"{introduction}\n{table}\n\n{took}.\n", "utf-8")
    deviations = [f"{row.what}: {deviation}" for row in rows for deviation in row.deviations]
    untried = [f"{row.what}: not tried" for row in rows if getattr(row, "status", 0) is None]
    print("\n".join(deviations + untried) or "every row is as it should be")
    return 1 if deviations else 0
