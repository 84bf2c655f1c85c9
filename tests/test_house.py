"""The house keeps its rules: who may import whom, sizes, names, and what the wheel holds."""

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning import Callback, LightningDataModule
from torch import nn
from torch.optim import Optimizer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
FOLDERS = {"framework": "algornn"} | {
    folder: f"algornn.{folder}" for folder in ("probes", "datamodules", "triton_kernels")
}
TOP_LEVEL = {*FOLDERS, "tests", "benchmarks", "results", "docs", ".ci", ".github"}

# The table "who may import whom" of DESIGN.md: room -> the other rooms and the libraries that it may import.
MAY_IMPORT = {
    "algornn.triton_kernels": {"torch", "triton"},
    "algornn.datamodules": {"torch", "lightning", "numpy", "sklearn", "PIL", "tqdm"},
    "algornn.probes": {"torch", "lightning", "torchmetrics", "numpy", "scipy", "sklearn", "matplotlib", "tqdm"},
    "algornn.memory": {"torch", "algornn.triton_kernels"},
    "algornn.models": {"torch", "algornn.memory"},
    "algornn.learners": {"torch", "lightning", "torchmetrics", "algornn.models"},
    "algornn.meta": {"torch", "lightning", "torchmetrics", "gymnasium", "algornn.models", "algornn.learners"},
    "algornn.recipes": {"yaml"},
}
# Imported in the function that needs them, never when the module is loaded.
LAZY = {"triton", "scipy", "sklearn", "matplotlib", "tensorboard", "gymnasium", "PIL"}


def import_name(file: Path) -> str:
    """Return the import name of a source file: framework/memory/x.py is algornn.memory.x."""
    folder, *rest = file.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


def room(file: Path) -> str:
    """Return the package that a source file lies in."""
    return import_name(file.parent / "__init__.py")


PACKAGE_FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
PACKAGES = sorted({room(file) for file in PACKAGE_FILES})
TREES = {file: ast.parse(file.read_text()) for file in PACKAGE_FILES}
all_files = pytest.mark.parametrize("file", PACKAGE_FILES, ids=[str(f.relative_to(ROOT)) for f in PACKAGE_FILES])


def names_imported(node: ast.AST) -> list[str]:
    """Return the modules that one import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def nodes_run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is loaded: no function bodies, no `if TYPE_CHECKING:` blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from nodes_run_at_import(child)


def pyproject() -> dict:
    """Return pyproject.toml as a dictionary."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


# --- imports -----------------------------------------------------------------------------------------------------


@all_files
def test_room_imports_only_what_it_may(file):
    here = room(file)
    if here == "algornn":
        pytest.skip("the command line, the reports and the re-exports may import everything")
    allowed = MAY_IMPORT[here] | {here} | set(sys.stdlib_module_names)
    allowed |= {"lightning_utilities"} if "lightning" in allowed else set()  # a part of lightning
    imported = {name for node in ast.walk(TREES[file]) for name in names_imported(node)}
    rooms = sorted(PACKAGES, key=len, reverse=True)  # the longest match is the room that a module lies in
    reached = {next((r for r in rooms if f"{n}.".startswith(f"{r}.")), n.split(".")[0]) for n in imported}
    assert reached <= allowed, f"{here} may not import {sorted(reached - allowed)}"


@all_files
def test_imports_are_absolute_and_heavy_libraries_wait(file):
    relative = [node.lineno for node in ast.walk(TREES[file]) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"relative imports in lines {relative}"
    early = {name.split(".")[0] for node in nodes_run_at_import(TREES[file]) for name in names_imported(node)}
    if file.stem.endswith("_triton"):  # kernels, which the operator beside them imports in a function
        early -= {"triton"}
    assert not early & LAZY, f"import {sorted(early & LAZY)} in the function that needs them"


@all_files
def test_kernels_are_imported_where_they_are_used(file):
    early = {name for node in nodes_run_at_import(TREES[file]) for name in names_imported(node)}
    early |= {
        f"{node.module}.{alias.name}"
        for node in nodes_run_at_import(TREES[file])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    kernels = {name for name in early if name.startswith("algornn.") and name.endswith("_triton")}
    assert not kernels or file.stem.endswith("_triton"), f"import {sorted(kernels)} in the function that needs them"


def test_init_of_algornn_only_reexports():
    tree = TREES[ROOT / "framework/__init__.py"]
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body)
    assert {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets} == {
        "__all__",
        "__version__",
    }


def test_folders_are_never_imported_by_their_folder_names():
    files = [*PACKAGE_FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    literal = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        for name in names_imported(node)
        if name.split(".")[0] in FOLDERS
    }
    assert not literal
    load_all = f"import sys, {', '.join(PACKAGES)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", load_all], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not FOLDERS.keys() & set(loaded.stdout.split())  # the checkout on sys.path must not tempt anybody
    assert not FOLDERS.keys() & sys.modules.keys()


def test_import_is_not_slower_than_lightning():
    def seconds(module: str) -> float:
        code = f"import time; import {module}; print(time.process_time())"  # processor time: other load does not count
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    lightning, algornn = [], []
    for _ in range(5):
        lightning.append(seconds("lightning"))
        algornn.append(seconds("algornn"))
        if len(algornn) > 1 and min(algornn) <= 1.3 * min(lightning):
            return
    pytest.fail(f"seconds to import: lightning {min(lightning):.2f}, algornn {min(algornn):.2f}")


# --- names -------------------------------------------------------------------------------------------------------


def classes_written_in(package: str) -> dict[str, type]:
    """Return the classes with a public name that are written in the files of a package."""
    modules = [importlib.import_module(import_name(file)) for file in PACKAGE_FILES if room(file) == package]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "algornn"])
def test_every_class_for_configurations_is_exported_once_by_its_room(package):
    for_configurations = (nn.Module, Optimizer, Callback, LightningDataModule)  # what a recipe can name
    exported = Counter(getattr(importlib.import_module(package), "__all__", []))
    classes = [name for name, cls in classes_written_in(package).items() if issubclass(cls, for_configurations)]
    not_once = [name for name in classes if exported[name] != 1]
    assert not_once == [], "export it in the room's __init__, or begin its name with an underscore"


def test_no_argument_has_a_class_as_its_default():
    """The parser of configurations hands the settings of such a default on to every class named in its place."""
    wrong = [
        f"{package}.{name}({argument.name})"
        for package in PACKAGES
        for name, cls in classes_written_in(package).items()
        for argument in inspect.signature(cls.__init__).parameters.values()
        if inspect.isclass(argument.default) and argument.default is not inspect.Parameter.empty
    ]
    assert wrong == [], "use None as the default, and say in the docstring what it stands for"


def test_every_export_exists_is_documented_and_has_one_room():
    homes = Counter()
    for name in PACKAGES:
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", [])
        assert len(exported) == len(set(exported)), f"{name}.__all__ names something twice"
        undocumented = [export for export in exported if not (getattr(module, export).__doc__ or "").strip()]
        assert not undocumented, f"no docstring: {name}: {undocumented}"
        homes.update([] if name == "algornn" else exported)
    assert [export for export, rooms in homes.items() if rooms > 1] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_public_classes_are_documented_and_their_constructors_typed_and_short(package):
    for name, cls in classes_written_in(package).items():
        assert (cls.__doc__ or "").strip(), f"{name} has no docstring"
        if "__init__" not in vars(cls) or getattr(cls, "_is_protocol", False):
            continue
        arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
        untyped = [argument.name for argument in arguments if argument.annotation is inspect.Parameter.empty]
        assert untyped == [], f"{name}: every argument needs a type"
        of_the_base = inspect.signature(cls.__mro__[1].__init__).parameters  # handed on, not its own
        own = [argument.name for argument in arguments if argument.name not in of_the_base]
        assert len(own) <= 10, f"{name} has {len(own)} arguments of its own"


# --- sizes and manners -------------------------------------------------------------------------------------------


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the length of the docstring, which does not count: it may be as long as the equation needs."""
    first = function.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0


@all_files
def test_files_and_functions_are_short(file):
    assert len(file.read_text().splitlines()) <= 400
    functions = [node for node in ast.walk(TREES[file]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {node.name: node.end_lineno - node.lineno + 1 - docstring_lines(node) for node in functions}
    assert {name: count for name, count in lines.items() if count > 50} == {}


@all_files
def test_package_code_raises_and_never_asserts(file):
    assert [node.lineno for node in ast.walk(TREES[file]) if isinstance(node, ast.Assert)] == []


@all_files
def test_no_catch_all_modules(file):
    assert file.stem not in {"utils", "util", "common", "helpers", "misc"}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Return the files under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_top_level_folders_are_fixed(tracked):
    folders = {file.relative_to(ROOT).parts[0] for file in tracked if file.parent != ROOT}
    assert FOLDERS.keys() <= folders <= TOP_LEVEL


def test_no_machine_paths_in_tracked_files(tracked):
    machine_path = re.compile(r"(?<![\w.\-/])/(?:root|home|Users|work|scratch)/\w|[A-Z]:\\Users\\", re.ASCII)
    found = {}
    for file in tracked:
        for number, line in enumerate(file.read_bytes().decode("utf-8", "ignore").splitlines(), 1):
            if machine_path.search(line):
                found[f"{file.relative_to(ROOT)}:{number}"] = line[:80]
    assert found == {}


# --- the package -------------------------------------------------------------------------------------------------


def test_pyproject_lists_every_package_of_the_tree():
    setup = pyproject()["tool"]["setuptools"]
    assert sorted(setup["packages"]) == PACKAGES
    assert setup["package-dir"] == {name: folder for folder, name in FOLDERS.items()}
    without_init = {file.parent for file in PACKAGE_FILES if not (file.parent / "__init__.py").exists()}
    assert not without_init


def test_constraints_pin_every_dependency():
    project = pyproject()["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {re.match(r"[\w.-]+", line)[0].lower() for line in asked} <= {name.lower() for name in pinned}
    assert not [line for line in asked if "<" in line.split(";")[0]], "no upper bounds: constraints.txt pins"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Build the wheel from a clean copy and install it into a fresh environment; return that environment's Python.

    It borrows torch and the rest from the running environment by a .pth file, which brings no editable install along.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run([*pip, *build], check=True)
    venv.create(folder / "fresh", with_pip=False)
    scheme = sysconfig.get_preferred_scheme("prefix")
    site = Path(sysconfig.get_path("purelib", scheme, {"base": str(folder / "fresh")}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("algornn-*.whl")
    python = folder / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    return python


def run_installed(python: Path, code: str) -> str:
    """Run code in the fresh environment, outside the checkout, and return what it printed."""
    command = [str(python), "-I", "-c", code]
    done = subprocess.run(command, cwd=python.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_imports_outside_the_checkout(installed):
    code = f"""
import {", ".join(PACKAGES)}
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="algornn")
print(algornn.__file__, algornn.__version__, script.value, callable(script.load()))
"""
    path, version, script, is_callable = run_installed(installed, code).split()
    assert Path(path).is_relative_to(installed.parent.parent)
    assert version == pyproject()["project"]["version"]
    assert (script, is_callable) == ("algornn.cli:main", "True")
    assert list(installed.parent.glob("algornn*")), "no `algornn` command"


def test_wheel_holds_every_file_of_the_packages(installed):
    code = """
import importlib.util, pathlib
root = pathlib.Path(importlib.util.find_spec("algornn").origin).parent
print(*sorted(f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file() and f.suffix != ".pyc"), sep="\\n")
"""
    sources = [f for folder in FOLDERS for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix != ".pyc"]
    expected = {file.relative_to(ROOT).as_posix().removeprefix("framework/") for file in sources}
    held = set(run_installed(installed, code).split())
    assert held == expected
    assert "py.typed" in held
    assert any(name.startswith("recipes/") and name.endswith(".yaml") for name in held)
