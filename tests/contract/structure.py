"""Measures the structure of the product: modules, their lengths, import levels, cycles and repeated class names.

    python tests/contract/structure.py [REVISION | FOLDER] [--json]

Prints a row for each package of a checkout: this one, another folder, or a git revision of this repository. An import
counts wherever it stands: at the top, in a function, or under `if TYPE_CHECKING`. `import a.b.c` and
`from a.b import c` import the module `a.b.c` if there is one, else `a.b`; the packages above it do not count.

Import levels are the modules on the longest chain of imports within a package; a cycle counts as one level.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "zrelay": "proto",
    "zrelay_shared": "shared",
    "zrelay_encoder": "encoder_service",
    "zrelay_vision": "vision_service",
    "zrelay_generator": "generator_service",
    "zrelay_client": "client",
    "zrelay_demo": "demo",
}
"""The packages of the product, and the folder that holds each."""

Graph = Mapping[str, Set[str]]
"""Each node and the nodes that it imports; every node is a key."""


def shipped(root: Path) -> dict[str, Path]:
    """Returns the product's modules in a checkout, without generated code: dotted name to file."""
    return {
        ".".join(path.relative_to(root / folder).with_suffix("").parts).removesuffix(".__init__"): path
        for package, folder in PACKAGES.items()
        for path in sorted((root / folder / package).rglob("*.py"))
        if "_pb2" not in path.name
    }


@cache
def parsed(path: Path) -> ast.Module:
    """Returns the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Yields every name that a module imports, `from a import b` as "a.b". Nested and TYPE_CHECKING imports count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            home = parts[: len(parts) - node.level + is_package] if node.level else []
            source = ".".join([*home, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def module_graph(files: Mapping[str, Path], package: str) -> dict[str, set[str]]:
    """Returns the imports between the modules of one package."""
    modules = {name for name in files if name.partition(".")[0] == package}
    graph: dict[str, set[str]] = {}
    for name in sorted(modules):
        found = imports(parsed(files[name]), name, is_package=files[name].name == "__init__.py")
        targets = {_module_of(imported, modules) for imported in found}
        graph[name] = {target for target in targets if target is not None and target != name}
    return graph


def sub_package_graph(modules: Graph) -> dict[str, set[str]]:
    """Returns the imports between the sub-packages of a package: its folders. Modules beside them do not count."""
    parts = {name: name.split(".") for name in modules}
    folders = {tuple(part[:2]) for part in parts.values() if len(part) > 2}
    graph: dict[str, set[str]] = {".".join(folder): set() for folder in folders}
    for name, targets in modules.items():
        mine = ".".join(parts[name][:2])
        if mine in graph:
            theirs = {".".join(parts[target][:2]) for target in targets}
            graph[mine] |= (theirs & graph.keys()) - {mine}
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """Returns the strongly connected components of more than one node, each sorted, largest first."""
    return sorted((sorted(part) for part in components(graph) if len(part) > 1), key=lambda part: (-len(part), part))


def components(graph: Graph) -> list[set[str]]:
    """Returns the strongly connected components in topological order: a component follows all that it imports.

    Source: R. Tarjan, Depth-first search and linear graph algorithms, 1972.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(set(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def levels(graph: Graph) -> int:
    """Returns the length of the longest chain of imports in modules, a cycle counted as one."""
    level: dict[str, int] = {}
    for part in components(graph):
        below = [level[target] for node in part for target in graph[node] if target not in part]
        level.update(dict.fromkeys(part, 1 + max(below, default=0)))
    return max(level.values(), default=0)


def class_names(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Returns the modules that define each class, functions' own classes included."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, path in files.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return found


def repeated_class_names(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Returns the class names that the product defines more than once, with their modules."""
    return {name: sorted(where) for name, where in sorted(class_names(files).items()) if len(where) > 1}


@dataclass(frozen=True)
class PackageStructure:
    """Measurements of one package. Lengths are in lines."""

    package: str
    modules: int
    lines: int
    median_lines: float
    maximum_lines: int
    levels: int
    cycles: list[list[str]]
    sub_packages: int
    sub_package_cycles: list[list[str]]


def measure(root: Path) -> list[PackageStructure]:
    """Returns the measurements of every package of a checkout, and of all of them as "product"."""
    files = shipped(root)
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    rows = []
    for package in PACKAGES:
        graph = module_graph(files, package)
        mine = [lengths[name] for name in graph] or [0]
        folders = sub_package_graph(graph)
        rows.append(
            PackageStructure(
                package,
                len(graph),
                sum(mine),
                median(mine),
                max(mine),
                levels(graph),
                cycles(graph),
                len(folders),
                cycles(folders),
            )
        )
    every = list(lengths.values())
    deepest = max(row.levels for row in rows)
    found = [cycle for row in rows for cycle in row.cycles]
    found_between = [cycle for row in rows for cycle in row.sub_package_cycles]
    folders_count = sum(row.sub_packages for row in rows)
    rows.append(
        PackageStructure(
            "product",
            len(every),
            sum(every),
            median(every),
            max(every),
            deepest,
            found,
            folders_count,
            found_between,
        )
    )
    return rows


def report(root: Path) -> str:
    """Returns the measurements as a Markdown table, with the cycles and the repeated class names below it."""
    rows = measure(root)
    lines = [
        "| package | modules | lines | median | maximum | levels | cycles | sub-packages | cycles between them |",
        "|---|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for row in rows:
        sizes = ", ".join(f"{len(cycle)} modules" for cycle in row.cycles) or "none"
        between = ", ".join(f"{len(cycle)} folders" for cycle in row.sub_package_cycles) or "none"
        numbers = [row.modules, row.lines, f"{row.median_lines:g}", row.maximum_lines, row.levels]
        cells = [row.package, *numbers, sizes, row.sub_packages, between]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for row in rows[:-1]:
        for cycle in [*row.cycles, *row.sub_package_cycles]:
            lines.append(f"\ncycle: {', '.join(cycle)}")
    repeated = repeated_class_names(shipped(root))
    lines.append(f"\nclass names defined more than once: {len(repeated)}")
    lines += [f"- {name}: {', '.join(where)}" for name, where in repeated.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default=str(ROOT), help="a checkout's folder, or a git revision")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args()
    if Path(args.what).is_dir():
        print(_shown(Path(args.what), args.json))
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", args.what], cwd=ROOT, stdout=subprocess.PIPE, check=False)
        if archive.returncode != 0:
            sys.exit(f"expected a folder or a git revision, got {args.what!r}")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        print(_shown(Path(folder), args.json))


def _shown(root: Path, as_json: bool) -> str:
    if not as_json:
        return report(root)
    rows = {row.package: asdict(row) for row in measure(root)}
    return json.dumps({"packages": rows, "repeated_class_names": repeated_class_names(shipped(root))}, indent=2)


def _module_of(imported: str, modules: Set[str]) -> str | None:
    """Returns the module that an imported name is, or is in; None for one of another package."""
    while imported:
        if imported in modules:
            return imported
        imported = imported.rpartition(".")[0]
    return None


if __name__ == "__main__":
    main()
