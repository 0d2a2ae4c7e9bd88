"""Who may import whom: the arrows of CONTRIBUTING.md, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"kernels", "dali_pipelines", "benchmarks", "deit_fast"}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "dali_pipelines": {"dali_pipelines"},
    "deit_fast": {"deit_fast", "kernels", "dali_pipelines"},
    "benchmarks": FOLDERS,
}


def imported_folders(source: str, folder: str, depth: int) -> set[str]:
    """The project's folders that a module imports; `depth` is the module's depth below its folder."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= depth, "a relative import that leaves its folder"
            found.add(folder)
            continue
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "deit_fast":
                found.add(parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "deit_fast")
            assert parts[0] not in FOLDERS - {"deit_fast"}, f"{name}: import it as deit_fast.{name}"
    return found


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_imports_follow_the_arrows(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        allowed = set(MAY_IMPORT[folder])
        if path == ROOT / "deit_fast" / "cli.py":
            allowed.add("benchmarks")
        depth = len(path.relative_to(ROOT / folder).parts)
        found = imported_folders(path.read_text(), folder, depth)
        assert found <= allowed, f"{path.relative_to(ROOT)} imports {found - allowed}"


def test_the_reader_of_imports_sees_what_is_forbidden():
    assert imported_folders("from deit_fast.benchmarks import rows", "deit_fast", 1) == {"benchmarks"}
    assert imported_folders("import deit_fast.kernels.attention", "deit_fast", 1) == {"kernels"}
    assert imported_folders("from deit_fast import model", "kernels", 1) == {"deit_fast"}


def test_benchmarks_are_imported_lazily():
    tree = ast.parse((ROOT / "deit_fast" / "cli.py").read_text())
    top_level = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
    assert all("benchmarks" not in ast.dump(node) for node in top_level)


def test_a_checkout_runs_where_the_package_is_installed_as_a_wheel():
    """`python -m deit_fast` in the checkout's folder, without the finder of an editable installation."""
    code = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
import deit_fast, deit_fast.kernels.choice, deit_fast.dali_pipelines.sampler, deit_fast.benchmarks.command
print(deit_fast.__file__, deit_fast.dali_pipelines.__file__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("deit_fast", "dali_pipelines")], (
        done.stderr
    )
