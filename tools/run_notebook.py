"""Execute a notebook as papermill does, with its arguments, and a log for people.

The log has each step's heading, what the step says, tables as wide as the terminal, and last why it stopped;
the traceback stays in the executed notebook. Ctrl-C reaches the running cell, as Jupyter's stop button does.
The status is 0, 1 where a cell failed, 2 for a wrong command line, 130 after Ctrl-C, 138 for a dead kernel.
"""

# ruff: noqa: E402
import asyncio
import signal
import sys
from collections import defaultdict

signal.signal(signal.SIGINT, signal.SIG_DFL)  # importing the rest takes seconds, and would show where it was

import click
import yaml
from bs4 import BeautifulSoup
from nbclient.exceptions import DeadKernelError
from papermill.cli import papermill
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from rich.table import Table
from rich.text import Text

OPTIONS = ["--engine", "people", "--no-progress-bar", "--log-level", "WARNING"]
console = Console(highlight=False, markup=False, emoji=False)


class Client(PapermillNotebookClient):
    """Executes the cells, and prints headings and outputs as they come."""

    def __init__(self, manager, **options):
        quiet = [
            "--IPKernelApp.log_level=CRITICAL",  # else each start warns that loopback is not encrypted
            "--IPKernelApp.logging_config={'loggers': {'tornado': {'level': 50}}}",  # sockets' ends
        ]
        options |= {"log_output": True, "on_cell_start": self.begin, "extra_arguments": quiet}
        super().__init__(manager, **options)
        self.heading, self.interrupted = "0. Start", None
        self.unfinished = defaultdict(str)  # the last line so far of stdout and of stderr

    def begin(self, cell, cell_index: int) -> None:
        """Print a text cell's heading; from now on Ctrl-C is the cell's (nbclient would end the kernel)."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self.interrupt)
        for stream in ("stdout", "stderr"):
            self.say(stream, "\n")
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            self.heading = cell.source.splitlines()[0].removeprefix("## ")
            console.print(f"\n{self.heading}", style="bold")
        if self.interrupted:  # between two cells
            raise KeyboardInterrupt

    def interrupt(self) -> None:
        """Do to the running cell what Jupyter's stop button does."""
        self.interrupted = asyncio.ensure_future(self.km.interrupt_kernel())

    def log_output_message(self, output) -> None:
        """Print a table as it is, and of a stream whole lines."""
        page = output.get("data", {}).get("text/html", "")
        if output.output_type == "stream":
            self.say(output.name, output.text)
        elif "<table" in page:
            console.print(table(page))

    def say(self, stream: str, text: str) -> None:
        """Print the lines that `text` completes, without colours, rules and the dots of waiting."""
        *lines, self.unfinished[stream] = (self.unfinished[stream] + text).split("\n")
        for line in (Text.from_ansi(line).plain.lstrip(".") for line in lines):
            if line.strip(" =-"):
                console.print(line, soft_wrap=True)


def table(page: str) -> Table:
    """Return the table of an HTML page; the terminal's width decides where its cells are wrapped."""
    rows = [row.find_all(["th", "td"]) for row in BeautifulSoup(page, "html.parser").find_all("tr")]
    columns = max(map(len, rows))
    drawn = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for _ in range(columns):
        drawn.add_column(overflow="fold")
    for row in rows:
        spanned = [""] * (columns - len(row))  # by a cell of a row above
        drawn.add_row(*spanned, *[Text(cell.get_text("\n", strip=True)) for cell in row])
    return drawn


class Engine(NBClientEngine):
    """papermill's own engine, with another client."""

    client: Client

    @classmethod
    def execute_managed_notebook(cls, manager, kernel_name, start_timeout=60, execution_timeout=None, **_):
        limits = {"startup_timeout": start_timeout, "timeout": execution_timeout}
        cls.client = Client(manager, kernel_name=kernel_name, **limits)
        try:
            return cls.client.execute()
        except DeadKernelError:
            error = click.ClickException(f"the kernel died in {cls.client.heading}")
            error.exit_code = 138  # papermill's own
            raise error from None


def main() -> int:
    """Return the exit status."""
    papermill_engines.register("people", Engine)
    try:
        return papermill([*OPTIONS, *sys.argv[1:]], "run_notebook.py", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (FileNotFoundError, yaml.YAMLError) as error:
        return stop(f"run_notebook.py: {error}", 2)
    except OSError as error:  # a full disk
        return stop(f"run_notebook.py: {error}", 1)
    except click.Abort:
        return stop(f"{Engine.client.heading} was interrupted", 130)
    except PapermillExecutionError as error:
        step = Engine.client.heading
        if Engine.client.interrupted:
            return stop(f"{step} was interrupted: {error.evalue or error.ename}", 130)
        return stop(f"{step} stopped: {error.ename}: {error.evalue}", 1)


def stop(sentence: str, status: int) -> int:
    console.print(f"\n{sentence}", style="bold", soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
