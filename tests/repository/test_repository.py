"""What the repository says of itself: its README, its requirements, its workflow files."""

import ast
import base64
import json
import re
import runpy
import shlex
import subprocess
import sys
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from local_azureml.cli import parse
from local_azureml.engine.install import find_uv

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "local_azureml" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TABLES = runpy.run_path(str(ROOT / "tools" / "refresh_pages.py"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MADE_BY_A_RUN = {
    "config.json",
    "tokenizer.json",
    "out.ipynb",
    "sample_score.json",
    "my-conversations.jsonl",
    "runs/",
}
SAID_BY_AZURE = {  # or by what runs there: what people search for, and nothing here can check
    "408",
    "429",
    "AADSTS700024",
    "AuthorizationFailed",
    "AuthorizationPermissionMismatch",
    "CERTIFICATE_VERIFY_FAILED",
    "CUDA out of memory",
    "ClusterMinNodesExceedCoreQuota",
    "KeyBasedAuthenticationNotPermitted",
    "Liveness probe failed",
    "No module named",
    "Not enough quota available",
    "OutOfCapacity",
    "ResourceNotReady",
    "SubscriptionNotRegistered",
    "UnexpectedKeywordError",
    "isn't registered with Subscription",
    "jobs.download(output_name=)",
    "logged-models failed with error code 404",
    "not 'ChainedTokenCredential'",
    "unexpected keyword argument 'tracking_uri'",
    "upstream request timeout",
}
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def notebook_cells() -> list:
    return nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4).cells


def commands(beginning: str) -> list[list[str]]:
    """Return the words of each command in the pages that begins so, comments left out."""
    lines = [line.strip() for page in PAGES for line in text(page).splitlines()]
    quoted = [command for page in PAGES for command in re.findall(r"`([^`\n]+)`", text(page))]
    return [shlex.split(line, comments=True) for line in lines + quoted if line.startswith(beginning)]


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text(page))


def anchors(page: Path) -> set[str]:
    """Return what GitHub calls the page's headings in a link."""
    headings = re.findall("^#+ (.+)", text(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_into_the_repository_leads_somewhere(page):
    inner = [link for link in links(page) if not link.startswith("https://")]
    assert [link for link in inner if not leads_somewhere(page, link)] == []


def test_the_readme_is_a_page_and_leads_to_every_other_one():
    readme = ROOT / "README.md"
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(readme) if "://" not in link}
    assert len(text(readme).splitlines()) <= 160
    assert set(PAGES) - linked == {readme}


def test_no_line_is_told_twice():
    told = [line for page in PAGES for line in text(page).splitlines() if len(line) > 60 and "|" not in line]
    assert sorted({line for line in told if told.count(line) > 1}) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    names = re.findall(r"`((?!/)[\w./-]+(?:\.(?:py|ipynb|txt|yml|md|cff|json|jsonl|toml)|/))`", text(page))
    assert [name for name in names if name not in MADE_BY_A_RUN and not (ROOT / name).exists()] == []


def test_every_make_target_that_the_pages_name_exists():
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.M))
    named = {word for words in commands("make ") for word in words[1:] if "=" not in word}
    assert named - targets == set()


def test_every_target_is_listed_by_make_help():
    makefile = text(ROOT / "Makefile")
    assert set(re.findall(r"^\.PHONY: (.+)", makefile, re.M)) == set(
        re.findall(r"^([a-z-]+):.*## ", makefile, re.M)
    )


def test_the_emulator_takes_every_command_line_that_the_readme_gives():
    for words in commands("python -m local_azureml "):
        assert parse(words[3:])


def test_the_script_takes_every_command_line_that_the_readme_gives():
    parser = runpy.run_path(str(ROOT / "download-dataset.py"))["command_line"]()
    for words in commands("python download-dataset.py "):
        assert parser.parse_args(words[2:])


def test_papermill_sets_only_parameters_that_there_are():
    lines = "\n".join(" ".join(words) for words in commands("papermill ") + commands("make run "))
    named = set(re.findall(r"-p (\w+)", lines)) | set(re.findall(r"-y (\w+):", lines))
    assert named and named <= {name for name, *_ in TABLES["parameters"]()}


def test_the_tables_that_are_taken_from_elsewhere_are_as_make_pages_writes_them():
    stale = [path.name for path, page in TABLES["pages"]().items() if text(path) != page]
    assert stale == [], "run `make pages`"


def test_the_notebook_holds_the_picture_that_the_readme_shows():
    [picture] = notebook_cells()[0].attachments["overview.png"].values()
    assert base64.b64decode(picture) == (ROOT / "docs" / "overview.png").read_bytes()


def test_the_table_of_steps_has_the_notebooks_headings():
    headings = [re.findall(r"^## (\d\. .+)$", cell.source, re.M) for cell in notebook_cells()]
    assert re.findall(r"^\| (\d\. [^|]+) \|", text(ROOT / "README.md"), re.M) == list(chain(*headings))


def sentences() -> str:
    """Return the texts in the code of the notebook, of what lies beside it and of the emulator."""
    sources = [cell.source for cell in notebook_cells() if cell.cell_type == "code"]
    sources += map(text, [*ROOT.glob("*.py"), *(ROOT / "local_azureml").rglob("*.py")])
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    unsaid = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    said = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in unsaid]
    return "\n".join(value for value in said if isinstance(value, str))


def test_the_troubleshooting_quotes_what_is_said_here_or_by_azure():
    rows = re.findall(r"^\| ([^|]+) \|", text(ROOT / "docs" / "troubleshooting.md"), re.M)
    quoted, said = {quote for row in rows for quote in re.findall("`(.+?)`", row)}, sentences()
    assert SAID_BY_AZURE - quoted == set()
    assert {quote for quote in quoted if quote not in said} - SAID_BY_AZURE == set()


def pins(python: str) -> dict[str, Requirement]:
    """Return the constraints that hold for a Python on Linux, by package."""
    lines = versions(text(ROOT / "constraints.txt"))
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    return {line.name: line for line in lines if not line.marker or line.marker.evaluate(here)}


def versions(listed: str) -> list[Requirement]:
    """Return what a file of requirements, or of constraints, lists."""
    return [Requirement(line) for line in re.sub(" *#.*", "", listed).splitlines() if line]


def requirements() -> list[Requirement]:
    return [wanted for file in sorted(ROOT.glob("requirements*.txt")) for wanted in versions(text(file))]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_constraints_name_one_version_in_range_for_every_requirement(python):
    chosen = {name: next(iter(pin.specifier)).version for name, pin in pins(python).items()}
    assert [str(wanted) for wanted in requirements() if chosen.get(wanted.name) not in wanted.specifier] == []


def test_the_constraints_are_what_a_plain_install_gave_that_day_but_for_what_is_held_back():
    constraints = text(ROOT / "constraints.txt")
    day = re.match("# made for (.+)", constraints)[1]
    command = ["compile", "--quiet", "--universal", "--python-version", "3.10", "--exclude-newer", day]
    command += ["--no-annotate", "--no-header", ROOT / "requirements.txt"]
    plain = subprocess.run(
        [find_uv(sys.executable), "pip", *command], capture_output=True, text=True, check=True
    )
    chosen = {str(pin) for pin in versions(constraints)}
    names = {pin.name for pin in versions(constraints)}
    others = {pin.name for pin in versions(plain.stdout) if str(pin) not in chosen and pin.name in names}
    held = re.search("^held_back := (.+)", text(ROOT / "Makefile"), re.M)[1]
    assert others <= {Requirement(pin).name for pin in held.split()}


def test_every_requirement_has_a_lower_and_an_upper_bound():
    assert [
        str(wanted)
        for wanted in requirements()
        if {bound.operator for bound in wanted.specifier} != {">=", "<"}
    ] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_pins_its_actions_by_hash_and_starts_without_permissions(path):
    workflow = yaml.safe_load(text(path))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert workflow["permissions"] == {} and "concurrency" in workflow
    assert [
        step["uses"] for step in steps if "uses" in step and not re.search(r"@[0-9a-f]{40}$", step["uses"])
    ] == []


def test_the_tests_run_on_every_python_that_the_readme_promises():
    workflow = yaml.safe_load(text(ROOT / ".github" / "workflows" / "tests.yml"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS


def test_the_dev_container_is_set_up_by_a_target_of_the_makefile():
    container = json.loads(text(ROOT / ".devcontainer" / "devcontainer.json"))
    assert container["postCreateCommand"] == "make install"
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).exists()
