"""What no line of ours may do: each was the way in of an advisory for a server like this one."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "src").rglob("*.py"))
MODULES = {
    *("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"),
    *("xml.etree", "xml.dom", "xml.sax.expatreader", "xml.parsers", "lxml"),  # entities, bombs
}
CALLS = {
    *("eval", "exec", "compile", "torch.load", "torch.jit.load", "torch.hub.load", "os.system"),
    *("os.popen", "np.load", "numpy.load", "tempfile.mktemp", "recv_pyobj", "send_pyobj"),
    *("all_gather_object", "broadcast_object_list", "scatter_object_list", "extractall"),
}
OPTIONS = {"trust_remote_code", "shell", "allow_pickle", "custom_pipeline", "follow_redirects"}
FLOORS = {"diffusers": (0, 38), "transformers": (5, 3), "starlette": (1, 3), "torch": (2, 6)}
"""Below these, loading a model or reading a request could run what somebody else wrote."""


def name_of(node: ast.expr) -> str:
    """The name by which something is called, dots included."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{name_of(value)}.{attr}"
    return ""


def is_banned(module: str) -> bool:
    return any(f"{module}.".startswith(f"{banned}.") for banned in MODULES)


def sins(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                found += [one.name for one in names if is_banned(one.name)]
            case ast.ImportFrom(module=str(module), names=names):
                spelt = (module, *(f"{module}.{one.name}" for one in names))
                found += [name for name in spelt if is_banned(name)]
            case ast.Call(func=func, keywords=keywords):
                name = name_of(func)
                if name in CALLS or name.rpartition(".")[2] in CALLS - {"compile", "eval"}:
                    found.append(name)
                for keyword in keywords:
                    is_off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                    if keyword.arg in OPTIONS and not is_off:
                        found.append(f"{name}({keyword.arg}=…)")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())
def test_nothing_runs_what_came_from_elsewhere(path):
    assert sins(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "from xml import etree",
        "import torch\ntorch.load('x')",
        "exec('1')",
        "load(x, trust_remote_code=True)",
        "run(x, shell=True)",
        "numpy.load(x, allow_pickle=y)",
    ],
)
def test_the_ban_sees_what_it_bans(line, tmp_path):
    (tmp_path / "sinner.py").write_text(line)

    assert sins(tmp_path / "sinner.py")


def test_dependencies_are_new_enough_wherever_we_are_installed():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    floors = dict(line.split(">=") for line in declared["dependencies"])

    for name, floor in FLOORS.items():
        assert tuple(int(part) for part in floors[name].split(".")[:2]) >= floor
