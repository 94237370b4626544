"""Train on the example of one's own data on the emulator; put the answers and the curve into the README."""

import base64

from bs4 import BeautifulSoup
from refresh_notebook import COMPARED, ROOT, execute
from refresh_pages import table, with_table

README, CURVE = ROOT / "README.md", ROOT / "docs" / "loss-curve.png"
NOTEBOOK, EXAMPLE = ROOT / "finetune_phi3_ultrachat.ipynb", ROOT / "examples" / "sailor.jsonl"
SETTINGS = {"dataset_name": str(EXAMPLE), "finetune_parameters": {"num_train_epochs": 25}}


def last(cells: dict, cell: str, kind: str) -> str:
    """Return the last output of that kind of a cell."""
    return [output.data[kind] for output in cells[cell].outputs if kind in output.get("data", {})][-1]


def answer_table(html: str) -> str:
    """Return step 8's table in Markdown: each prompt with the truth and both answers."""
    heads, *rows = BeautifulSoup(html, "html.parser").find_all("tr")
    texts = [row.find_all("td") for row in rows]
    texts.insert(0, heads.find_all("th")[-len(texts[0]) :])  # without the row's number
    lines = [[cell.get_text().replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in texts]
    head, *rows = (f"| {' | '.join(cells)} |" for cells in lines)
    return table(head, rows)


if __name__ == "__main__":
    cells = {cell.id: cell for cell in execute(NOTEBOOK, COMPARED | SETTINGS) if "id" in cell}
    readme = with_table(README.read_text("utf-8"), answer_table(last(cells, "score", "text/html")))
    README.write_text(readme, "utf-8")
    CURVE.write_bytes(base64.b64decode(last(cells, "finetune", "image/png")))
