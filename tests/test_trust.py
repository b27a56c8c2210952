"""Nothing in the package executes what it reads."""

import ast
from pathlib import Path

import actbench

EXECUTES = {
    "eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "torch.load",
    "np.load", "numpy.load", "os.system", "yaml.load", "joblib.load", "shelve.open",
}  # fmt: skip
"""As they would be written; `numpy.load` unpickles if it is asked to."""
SHELL = "shell"


def test_no_call_executes_or_unpickles() -> None:
    found = []
    for path in Path(actbench.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                through_shell = any(keyword.arg == SHELL for keyword in node.keywords)
                if ast.unparse(node.func) in EXECUTES or through_shell:
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert not found
