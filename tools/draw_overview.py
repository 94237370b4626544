"""Draw the picture under the notebook's title: docs/overview.png, and the same in the notebook itself.

It has a background of its own, to be read on light and on dark pages, and letters large enough for phones.
"""

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
from matplotlib.patches import Circle, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE, NOTEBOOK = ROOT / "docs" / "overview.png", ROOT / "finetune_phi3_ultrachat.ipynb"
PAPER, INK, FREE, PAID, COIN = "#f7f5f0", "#1d2733", "#ffffff", "#ffe9b8", "#d99a00"
BOXES = {  # name -> x, y, what it is, what happens there, whether it is billed by the hour
    "data": (0, 2, "Conversations", "of the hub, or your own\nfile: step 4", False),
    "workspace": (1, 2, "Workspace", "keeps files, jobs,\nmodels: step 1", False),
    "registry": (2, 2, "Registry", "has the base model and\nits trainer: step 2", False),
    "you": (0, 0, "Your question", "gets an answer:\nstep 8", False),
    "endpoint": (1, 0, "Endpoint", "serves the new model:\nsteps 6 and 7", True),
    "cluster": (2, 0, "GPU cluster", "trains the model:\nsteps 3 and 5", True),
}
ARROWS = [
    ("data", "workspace", ""),
    ("workspace", "cluster", "rows"),
    ("registry", "cluster", "weights"),
    ("cluster", "endpoint", ""),
    ("endpoint", "you", ""),
]
WIDTH, HEIGHT, ACROSS, DOWN = 3.1, 1.5, 3.9, 1.25


def centre(name: str) -> tuple[float, float]:
    x, y = BOXES[name][:2]
    return x * ACROSS, y * DOWN


def edge(name: str, towards: str) -> tuple[float, float]:
    """Return the point of a box at which an arrow to or from another one ends."""
    (x, y), (other_x, other_y) = centre(name), centre(towards)
    if y == other_y:
        return x + (WIDTH if other_x > x else -WIDTH) / 2, y
    return x + (0.9 if other_x > x else -0.9 if other_x < x else 0.6), y + (
        HEIGHT if other_y > y else -HEIGHT
    ) / 2


def draw() -> bytes:
    """Return the picture as PNG."""
    figure, axis = plt.subplots(figsize=(11, 5), dpi=110, facecolor=PAPER)
    figure.subplots_adjust(0, 0, 1, 1)
    axis.set(xlim=(-1.8, 9.6), ylim=(-1.6, 3.55), aspect="equal")
    axis.axis("off")
    for name, (_, _, title, does, paid) in BOXES.items():
        x, y = centre(name)
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.15",
            facecolor=PAID if paid else FREE,
            edgecolor=COIN if paid else INK,
            linewidth=2,
        )
        axis.add_patch(box)
        axis.text(x, y + 0.38, title, ha="center", va="center", size=21, weight="bold", color=INK)
        axis.text(x, y - 0.24, does, ha="center", va="center", size=16, color=INK, linespacing=1.3)
        if paid:
            coin((x + WIDTH / 2 - 0.1, y + HEIGHT / 2 - 0.1))
    for start, end, label in ARROWS:
        (x, y), (to_x, to_y) = edge(start, end), edge(end, start)
        axis.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "-|>", "lw": 2.5, "color": INK})
        axis.text((x + to_x) / 2 + 0.15, (y + to_y) / 2, label, size=16, va="center", color=INK)
    coin((-1.3, -1.25))
    axis.text(
        -0.95,
        -1.25,
        "billed by the hour: the cluster while it trains, the endpoint until step 9",
        size=16,
        va="center",
        color=INK,
    )
    file = io.BytesIO()
    figure.savefig(file, metadata={"Software": None}, pil_kwargs={"optimize": True})
    plt.close(figure)
    return file.getvalue()


def coin(place: tuple[float, float]) -> None:
    plt.gca().add_patch(Circle(place, 0.26, facecolor=COIN, edgecolor=PAPER, linewidth=2, zorder=3))
    plt.gca().text(*place, "$", ha="center", va="center", size=18, weight="bold", color="white", zorder=4)


if __name__ == "__main__":
    PICTURE.write_bytes(draw())
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    picture = base64.b64encode(PICTURE.read_bytes()).decode()
    notebook.cells[0].attachments = {PICTURE.name: {"image/png": picture}}  # which every viewer shows
    nbformat.write(notebook, NOTEBOOK)
