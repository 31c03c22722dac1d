"""The code's layout: imports point down, there are no import cycles, and no package is too large."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "components").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
STEPS = ("ingest", "validate", "sft", "grpo", "evaluate", "register")

# From top to bottom. A package only imports from lower levels.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("components.__main__", "pipelines"),
    ("components.runner", "components.commands.ablation", "components.commands.bench", "components.commands.data",
     "components.commands.demo", "components.commands.dry_run", "components.commands.init",
     "components.commands.newest",
     "components.commands.predict", "components.commands.registry", "components.commands.serve",
     "components.commands.summary"),
    ("components.commands.machine",),
    tuple(f"components.{step}" for step in STEPS),
    ("components.shared.kubeflow", "components.shared.training"),
    ("components.shared.model", "components.shared.reporting"),
    ("components.shared.tracking", "components.shared.rows", "components.launcher"),
    ("components.settings", "components.steps", "components.shared.s3"),
    ("components.shared.io", "components.shared.scoring", "components.strict", "components.s3_address"),
    ("components.console", "components.errors"),
)  # fmt: skip
LEVEL = {package: number for number, packages in enumerate(LEVELS) for package in packages}


def package(module: str) -> str:
    """Returns the package, or the file of components/, that a module belongs to."""
    parts = module.split(".")
    depth = {"pipelines": 1, "shared": 3, "commands": 3}
    return ".".join(parts[: depth.get(parts[0], depth.get(parts[1] if len(parts) > 1 else "", 2))])


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path) -> set[str]:
    """Returns the modules of this project that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                names.add(f"{node.module}.{alias.name}" if is_module else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.partition(".")[0] in ("components", "pipelines")}


def test_every_package_has_a_level() -> None:
    packages = {package(module_of(file)) for file in FILES}
    assert packages - {"components", "components.shared", "components.commands"} == set(LEVEL)


def test_imports_point_down() -> None:
    """Modules may import from their own package, but packages on the same level may not import each other."""
    upwards = [
        f"{module_of(file)} imports {module}"
        for file in FILES
        for module in imported(file)
        if package(module) != (own := package(module_of(file)))
        and own in LEVEL
        and LEVEL[package(module)] <= LEVEL[own]
    ]
    assert upwards == []


def test_there_are_no_import_cycles() -> None:
    imports = {module_of(file): imported(file) for file in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in imports.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in imports:
        visit(module, ())


def test_no_package_has_more_than_a_third_of_the_lines() -> None:
    lines: dict[str, int] = defaultdict(int)
    for file in FILES:
        lines[package(module_of(file))] += len(file.read_text(encoding="utf-8").splitlines())
    assert max(lines.values()) <= sum(lines.values()) / 3


def test_scoring_imports_nothing_else_of_this_project() -> None:
    for file in (ROOT / "components" / "shared" / "scoring").glob("*.py"):
        assert {package(module) for module in imported(file)} <= {"components.shared.scoring"}
