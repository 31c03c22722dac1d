"""`python -m pipelines graph`: draws the pipeline from its compiled YAML."""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.console import console
from components.settings import load_settings
from pipelines.cluster_settings import load_cluster
from pipelines.compile import add_pipeline_arguments, chosen_image, compile_pipeline

WIDTH, HEIGHT = 1.85, 0.62  # size of a task's box, in the drawing's units
STEP_X, STEP_Y = 2.4, 1.2
COLOURS = {"system.Dataset": "#0072b2", "system.Model": "#c8500a", "system.Artifact": "#5b6675"}
INK = "#333a44"


@dataclass(frozen=True)
class Task:
    """A task of the compiled pipeline.

    Attributes:
        name: its key in the DAG.
        title: what Kubeflow's UI shows.
        column: number of tasks on the longest path that leads to it.
        row: 0, or higher for a task in a shared column that no other task depends on.
    """

    name: str
    title: str
    column: int
    row: int

    @property
    def center(self) -> tuple[float, float]:
        """The center of its box in the drawing."""
        return self.column * STEP_X, self.row * STEP_Y


@dataclass(frozen=True)
class Edge:
    """An artifact that one task passes to another."""

    source: str
    target: str
    artifact: str
    kind: str


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    sub.add_argument(
        "--out", type=Path, default=Path("results/pipeline.svg"), help=".svg or .png (default: %(default)s)"
    )
    add_pipeline_arguments(sub)


def command(args: argparse.Namespace) -> int:
    """Draws the pipeline; returns exit code 0."""
    settings, cluster = load_settings(args.params), load_cluster(args.cluster)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_pipeline(settings, cluster, chosen_image(args.image, cluster), "", package)
        tasks, edges = read_graph(next(yaml.safe_load_all(package.read_text(encoding="utf-8"))))
    draw(tasks, edges, args.out)
    console.print(f"{args.out}: {len(tasks)} tasks, {len(edges)} artifacts between them", markup=False)
    return 0


def read_graph(spec: dict[str, Any]) -> tuple[list[Task], list[Edge]]:
    """Returns the tasks in topological order, and the artifacts between them."""
    dag, components = spec["root"]["dag"]["tasks"], spec["components"]
    columns: dict[str, int] = {}
    while len(columns) < len(dag):
        for name in sorted(dag):
            needed = dag[name].get("dependentTasks", [])
            if name not in columns and all(other in columns for other in needed):
                columns[name] = max((columns[other] + 1 for other in needed), default=0)
    feeding = {other for name in dag for other in dag[name].get("dependentTasks", [])}
    tasks: list[Task] = []
    for name in sorted(dag, key=lambda name: (columns[name], name not in feeding)):
        row = sum(task.column == columns[name] for task in tasks)
        tasks.append(Task(name, dag[name]["taskInfo"]["name"], columns[name], row))
    edges = []
    for task in tasks:
        for artifact_input in dag[task.name].get("inputs", {}).get("artifacts", {}).values():
            output = artifact_input["taskOutputArtifact"]
            source, artifact = output["producerTask"], output["outputArtifactKey"]
            outputs = components[dag[source]["componentRef"]["name"]]["outputDefinitions"]["artifacts"]
            edges.append(Edge(source, task.name, artifact, outputs[artifact]["artifactType"]["schemaTitle"]))
    return tasks, sorted(edges, key=lambda edge: (columns[edge.source], columns[edge.target]))


def draw(tasks: list[Task], edges: list[Edge], out: Path) -> None:
    """Writes the picture. The same graph gives the same bytes. In an SVG, each task and edge has its name as its id."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(task.column for task in tasks) + 1
    with mpl.rc_context({"svg.hashsalt": "concord", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure, axes = plt.subplots(figsize=(columns * STEP_X * 0.7, 2.9))
        _draw_edges(axes, tasks, edges)
        _draw_tasks(axes, tasks)
        axes.set(xlim=(-WIDTH * 0.6, (columns - 1) * STEP_X + WIDTH * 0.6), ylim=(-1.3, 2.1))
        axes.axis("off")
        out.parent.mkdir(parents=True, exist_ok=True)
        metadata: dict[str, Any] = {"Date": None, "Creator": None} if out.suffix == ".svg" else {"Software": None}
        figure.savefig(out, dpi=150, bbox_inches="tight", facecolor="white", metadata=metadata)
        plt.close(figure)


def _draw_tasks(axes: Any, tasks: list[Task]) -> None:
    from matplotlib.patches import FancyBboxPatch

    for task in tasks:
        x, y = task.center
        corner, style = (x - WIDTH / 2, y - HEIGHT / 2), "round,pad=0.02,rounding_size=0.08"
        box = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle=style, facecolor="white", edgecolor=INK, linewidth=1.2)
        box.set_gid(f"task:{task.name}")
        axes.add_patch(box)
        named = task.title == task.name
        axes.text(
            x, y if named else y + 0.1, task.name, ha="center", va="center", fontsize=10, weight="bold", color=INK
        )
        if not named:
            axes.text(x, y - 0.14, task.title, ha="center", va="center", fontsize=6.2, color=INK)


def _draw_edges(axes: Any, tasks: list[Task], edges: list[Edge]) -> None:
    """Draws a straight arrow to the next column, and a curved one past other columns: models below, the rest above.

    Every task with an edge is in the first row.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    column = {task.name: task.column for task in tasks}
    for edge in edges:
        x, to_x = column[edge.source] * STEP_X, column[edge.target] * STEP_X
        side = -1 if edge.kind == "system.Model" else 1
        if column[edge.target] - column[edge.source] == 1:
            start, end, bend = (x + WIDTH / 2, 0.0), (to_x - WIDTH / 2, 0.0), 0.0
        else:
            height = side * HEIGHT / 2
            start, end, bend = (x + WIDTH / 4, height), (to_x - WIDTH / 4, height), -0.34 * side
        arrow = FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            linewidth=1.4,
            color=COLOURS[edge.kind],
            connectionstyle=f"arc3,rad={bend}",
        )
        arrow.set_gid(f"edge:{edge.source}:{edge.target}:{edge.artifact}")
        axes.add_patch(arrow)
    kinds = [kind for kind in COLOURS if any(edge.kind == kind for edge in edges)]
    lines = [Line2D([], [], color=COLOURS[kind], linewidth=1.6) for kind in kinds]
    names = [kind.removeprefix("system.") for kind in kinds]
    axes.legend(lines, names, loc="lower left", frameon=False, fontsize=8, ncols=len(names))
