"""The arrows between the layers point down only (DESIGN: configs -> experiments -> distill -> diffusion, ...)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("configs", "diffusion", "distill", "experiments", "models")
FORBIDDEN = {
    "diffusion": {"flax", "optax", "ml_collections", "configs", "distill", "experiments", "models"},
    "distill": {"flax", "ml_collections", "configs", "experiments", "models"},
    "models": {"ml_collections", "configs", "diffusion", "distill", "experiments"},
    "experiments": {"configs"},
    "configs": set(),
}


def imported(path: pathlib.Path) -> set[str]:
    """Top-level names of all imports of a file, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows_point_down(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no Python file"
    for path in files:
        wrong = imported(path) & FORBIDDEN[folder]
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_check_sees_an_import_inside_a_function(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from flax.nnx import Module\n    return Module\n")
    assert imported(path) == {"flax"}


def test_diffusion_loads_without_networks_and_configs():
    """What the static check can't see: importing all of diffusion must not pull in flax through someone else."""
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "diffusion").rglob("*.py")]
    modules = [m.removesuffix(".__init__") for m in modules]
    code = f"import sys\nfor m in {modules!r}: __import__(m)\n"
    code += "print([m for m in ('flax', 'ml_collections') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
