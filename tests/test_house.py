"""The rules of the house: what may import what, how long a function is, and that each is explained."""

import ast
import io
import runpy
import subprocess
import sys
import tokenize
import warnings
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from more.__main__ import first_lines

ROOT = Path(__file__).parent.parent
SCRIPTS = ["ovd", "tasks", "sample", "score", "train"]  # in the order in which they are read
TOTAL = 1450  # lines of the five together, at most
FIVE = [ROOT / f"{name}.py" for name in SCRIPTS]
ALL = FIVE + sorted((ROOT / "more").glob("*.py"))
named = pytest.mark.parametrize("path", ALL, ids=lambda p: p.relative_to(ROOT).as_posix())
five = pytest.mark.parametrize("path", FIVE, ids=lambda p: p.name)


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions_of(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def imports_of(node):
    """{module: names imported from it} of all import statements within a node."""
    found = {}
    for n in ast.walk(node):
        if isinstance(n, ast.Import):
            found |= {name.name: [] for name in n.names}
        elif isinstance(n, ast.ImportFrom):
            assert n.level == 0, "no relative imports"
            found[n.module] = found.get(n.module, []) + [name.name for name in n.names]
    return found


# ------------------------------------------------------------------------------- imports
def at_the_top(path):
    """The modules of this project that a script imports as it is loaded, "more.flags" and "tasks"."""
    found = set()
    for node in tree_of(path).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for module, names in imports_of(node).items():
                found |= {f"more.{n}" for n in names} if module == "more" else {module}
    return {m for m in found if m.split(".")[0] in {*SCRIPTS, "more"}}


def test_what_is_loaded_is_not_searched_for_garbage_and_all_later_is():
    loaded = "import gc, train; print(gc.isenabled(), gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    enabled, frozen = done.stdout.split()
    assert enabled == "True" and int(frozen) > 100_000
    for path in (ROOT / "sample.py", ROOT / "train.py"):  # before what it is to load
        names = [line.split()[1] for line in path.read_text().splitlines()
                 if line.startswith(("import ", "from "))]
        assert names.index("more.libraries") < names.index("torch")


@five
def test_a_script_imports_only_from_those_before_it(path):
    """Also by way of more/: what it takes from there at the top needs no script that comes later.

    These are the flags, the terminal, the machine and what a run leaves behind. All else is
    imported within a function, where a flag asks for it.
    """
    needed, new = set(), at_the_top(path)
    while new:
        needed |= new
        new = {m for name in new for m in at_the_top(ROOT / f"{name.replace('.', '/')}.py")} - needed
    assert {m for m in needed if "." not in m} <= {*SCRIPTS[: SCRIPTS.index(path.stem)]}
    asked_for = {"search", "suffix", "judge", "server", "reply", "ask", "report", "compare"}
    assert not {m.partition(".")[2] for m in at_the_top(path)} & asked_for
    inside = {m for function in functions_of(tree_of(path)) for m in imports_of(function)}
    assert not {m for m in inside if m.split(".")[0] in SCRIPTS}  # those stand at the top


def test_the_method_needs_torch_and_the_standard_library_alone():
    modules = {module.split(".")[0] for module in imports_of(tree_of(ROOT / "ovd.py"))}
    outside = modules - set(sys.stdlib_module_names)
    assert outside <= {"torch", "more"} and at_the_top(ROOT / "ovd.py") == {
        "more.machine", "more.terminal"}
    machine = tree_of(ROOT / "more/machine.py")
    modules = {module.split(".")[0] for module in imports_of(machine)}
    assert modules - set(sys.stdlib_module_names) == {"torch", "psutil"}
    assert not [n for n in machine.body if "psutil" in ast.unparse(n) and not
                isinstance(n, ast.FunctionDef)]  # where the system itself does not say what is held


@named
def test_no_private_name_is_imported(path):
    for module, names in imports_of(tree_of(path)).items():
        assert not [part for part in module.split(".") + names if part.startswith("_")], module


# ------------------------------------------------------------------------------- length
@named
def test_no_line_is_over_100_columns_and_no_rule_is_switched_off(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [i for i, line in enumerate(lines, 1) if len(line) > 100]
    assert not [i for i, line in enumerate(lines, 1) if "noqa" in line]


@named
def test_no_function_is_over_45_lines(path):
    long = [f"{f.name}: {f.end_lineno - f.lineno + 1}" for f in functions_of(tree_of(path))
            if f.end_lineno - f.lineno + 1 > 45]
    assert not long


def test_the_five_together_stay_short():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FIVE) <= TOTAL


# ------------------------------------------------------------------------------- explained
@named
def test_whatever_is_public_has_a_docstring(path):
    """Modules, classes, their methods but __init__, and functions that stand in no other."""
    tree = tree_of(path)
    nodes = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    nodes += [m for n in nodes if isinstance(n, ast.ClassDef) for m in functions_of(n)]
    bare = [n.name for n in nodes if not n.name.startswith("_") and not ast.get_docstring(n)]
    assert ast.get_docstring(tree) and not bare


@named
def test_a_script_says_how_it_is_run_and_ends_in_one_line_where_it_cannot(path):
    """What is no script, because another one calls it, says that one's command."""
    tree, name = tree_of(path), path.stem
    explained, last = ast.get_docstring(tree), ast.unparse(tree.body[-1])
    if last.startswith("if __name__ == '__main__':"):
        command = f"python {path.name}" if path in FIVE else f"python -m more.{name}"
        elsewhere = "is a flag of" in ast.unparse(tree.body[-2])  # all that its main() says
        assert command.replace(".__main__", "") in explained or elsewhere
        assert "fail_in_one_line(" in last or name == "__main__"  # it takes no input
    else:
        assert path not in FIVE and "    python " in explained


def lines_that_explain(text):
    """Numbers of the lines that hold a comment, or a part of a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            lines |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return lines


def lines_of_code(text):
    """Numbers of the lines that hold anything but comments, docstrings and blanks."""
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENDMARKER}
    lines = set()
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        if t.type not in blank:
            lines |= {*range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            lines -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return lines


def test_lines_are_counted_right():
    text = '"""What\n\nit is."""\nx = """a\nb"""  # why\n\n# how\ndef f():\n    """Says."""\n    return 1\n'
    assert lines_that_explain(text) == {1, 2, 3, 5, 7, 9} and lines_of_code(text) == {4, 5, 8, 10}


@five
def test_a_line_explains_two_lines_of_code(path):
    text = path.read_text(encoding="utf-8")
    explained, code = len(lines_that_explain(text)), len(lines_of_code(text))
    assert explained >= code / 2, f"{explained} lines explain {code}"


def test_python_m_more_lists_every_script(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["more"])
    runpy.run_path(str(ROOT / "more/__main__.py"), run_name="__main__")
    *lines, last = capsys.readouterr().out.splitlines()
    names = sorted(p.stem for p in (ROOT / "more").glob("*.py") if p.stem != "__main__")
    lines = [line for line in lines if " more." in line]
    assert sorted(line.split(" more.")[1].split()[0] for line in lines) == names
    assert all(len(line.split(" more.")[1].split()) > 4 for line in lines)
    runs = [n for n in names if 'if __name__ ==' in (ROOT / f"more/{n}.py").read_text(encoding="utf-8")]
    assert [line.split()[2] for line in lines if line.startswith("python")] == [f"more.{n}" for n in runs]
    assert last == f"{len(runs)} scripts, and {len(names) - len(runs)} parts that they import."
    assert list(first_lines(ROOT / "more")) == names


# ------------------------------------------------------------------------------- deprecated calls
def test_a_deprecated_call_of_ours_is_an_error(student):
    """As `past_key_values` was, which transformers 5.24 wants to be called `cache`."""
    model, tokenizer = student
    call = dict(input_ids=torch.tensor([[5]]), past_key_values=DynamicCache(config=model.config))
    with pytest.raises(FutureWarning, match="past_key_values"):
        model(**call)
    with pytest.raises(FutureWarning, match="gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable()
    with pytest.raises(DeprecationWarning, match="of ours"):
        exec(compile("import warnings\nwarnings.warn('of ours', DeprecationWarning)",
                     str(ROOT / "more/x.py"), "exec"), {"__name__": "more.x"})


def test_a_deprecated_call_between_libraries_is_none(student):
    library = {"__name__": "library"}
    exec(compile("def call(f, **given):\n    return f(**given)", "/site-packages/library.py", "exec"),
         library)
    model, _ = student
    call = dict(input_ids=torch.tensor([[5]]), past_key_values=DynamicCache(config=model.config))
    with pytest.warns(FutureWarning, match="past_key_values"):
        library["call"](model, **call)
    with pytest.warns(UserWarning, match="of another kind"):
        warnings.warn("of another kind")
