"""Other people's notebooks, by the program's command line: how far each comes, and what its line says."""

import subprocess
import sys

import nbformat
import pytest

from scenarios.notebook_runs import ROOT

ENDS = """
import urllib.request
assert urllib.request.urlopen("https://data.example/a%20folder/rows.csv").read() == b"1,2"
assert open("config.json").read() and "<SUBSCRIPTION_ID>".startswith("0000")
"""
STOPS = "not_defined_here", "print('not reached')"


@pytest.fixture(scope="module")
def page(tmp_path_factory, environment):
    """The page of two notebooks, one of which reads a file from the web, and the other stops at itself."""
    place = tmp_path_factory.mktemp("samples")
    rows = place / "folder/web/data.example/a folder/rows.csv"
    rows.parent.mkdir(parents=True)
    rows.write_text("1,2")
    for name, cells in {"ends": [ENDS], "stops": STOPS}.items():
        code = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=code), place / "folder" / f"{name}.ipynb")
    page = place / "page.md"
    page.write_text("# Title\n\nWhat it is.\n\n1 of 2 reach their end.\n\n| notebook |\n|---|\n| old |\n")
    command = [sys.executable, "-m", "scenarios.samples", "--page", page, place / "folder"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return page.read_text()


def test_a_notebook_that_ends_has_read_the_web_and_had_its_ids_filled_in(page):
    assert "| ends.ipynb | ids, web | 1 of 1 |" in page and "nothing: it reached its end |" in page


def test_a_notebook_that_stops_at_itself_would_stop_on_azure_too(page):
    told = "NameError: name 'not_defined_here' is not defined; on Azure too: no cell that runs defines it"
    assert "| stops.ipynb |  | 0 of 2 |" in page and told in page


def test_the_page_keeps_its_words_and_counts_anew(page):
    title, words, counts, table = page.split("\n\n")
    assert (title, words, table.count("\n| ")) == ("# Title", "What it is.", 2)
    assert counts.startswith("1 of 2 reach their end with every job completed, 1 stop where they would")
