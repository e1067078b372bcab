"""The walls between our packages, read from the source: who imports whom, and where flags are read.

Data runs down the page; imports run up it, never down:

    pipeline    imports nothing of ours
    keras_mae   layers <- models <- training <- evaluation <- the commands (its top-level files);
                recipes, which import nothing of ours, <- training, the commands
    tools       may import all of it, and nobody but tools imports tools
"""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("keras_mae", "pipeline", "tools")

MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "keras_mae.layers": {"keras_mae.layers"},
    "keras_mae.models": {"keras_mae.layers", "keras_mae.models"},
    "keras_mae.training": {
        "keras_mae.layers",
        "keras_mae.models",
        "keras_mae.training",
        "keras_mae.recipes",  # plain data, which training.run takes
    },
    "keras_mae.evaluation": {
        "keras_mae.layers",
        "keras_mae.models",
        "keras_mae.training",
        "keras_mae.evaluation",
    },
    "keras_mae.recipes": {"keras_mae.recipes"},
    "keras_mae": {"keras_mae.layers", "keras_mae.models"},  # its __init__
    "keras_mae command": {
        "pipeline",
        "keras_mae",
        "keras_mae command",
        "keras_mae.layers",
        "keras_mae.models",
        "keras_mae.training",
        "keras_mae.evaluation",
        "keras_mae.recipes",
    },
}
MAY_IMPORT["tools"] = {"tools", *MAY_IMPORT["keras_mae command"]}

# Outside the standard library. None: no rule.
THIRD_PARTY = {"keras_mae.layers": {"keras", "numpy"}, "keras_mae.models": {"keras", "numpy"}}

# What FLAGS knows about definitions, as against the values that the user gave
FLAG_REGISTRY = ("flags_by_module_dict", "register_key_flag_for_module", "get_key_flags_for_module")

NO_TENSORFLOW = (
    *("tools.make_shards", "tools.verify_shards", "tools.inspect_shards", "tools.beam_engine"),
    *("tools.shuffle_quality", "pipeline.host_engine", "pipeline.tar_streaming"),
)


@functools.cache
def source_files():
    """{module name: source} of every file of our packages."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {module_name(path): path.read_text() for path in files}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" else (*parts[:-1], "__init__"))


@functools.cache
def imports(source, module):
    """Names that a source imports; `from a import b` counts as a.b, relative imports are resolved."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def area(name):
    """Which part of the house a module, or an imported name, belongs to; None if it is not ours."""
    parts = [part for part in name.split(".") if part != "__init__"]
    if not parts or parts[0] not in PACKAGES:
        return None
    if parts[0] != "keras_mae" or len(parts) == 1:
        return parts[0]
    folder = f"keras_mae.{parts[1]}"
    return folder if (ROOT / "keras_mae" / parts[1]).is_dir() else "keras_mae command"


def import_violations(source, module):
    """Sentences, one for each import that goes through a wall."""
    here = area(module)
    if here not in MAY_IMPORT:
        return [f"{module}: no rule for {here}; add it to MAY_IMPORT"]
    found = []
    for name in sorted(imports(source, module)):
        there, top = area(name), name.split(".")[0]
        if there is not None and there not in MAY_IMPORT[here]:
            found.append(f"{module} ({here}) imports {name} ({there})")
        allowed = THIRD_PARTY.get(here)
        if there is None and allowed is not None and top not in allowed | sys.stdlib_module_names:
            found.append(f"{module} ({here}) imports {name}; only {sorted(allowed)} are allowed there")
        if name.startswith("keras.src"):
            found.append(f"{module} imports {name}, which is private to Keras")
    return found


def flag_violations(source, module):
    """Sentences, one for each line that reads FLAGS outside a function named main.

    `FLAGS = flags.FLAGS` reads nothing yet, and FLAG_REGISTRY no value. A holder,
    `NAME = flags.DEFINE_...(...)`, is read by its name.
    """
    tree = ast.parse(source)
    allowed, holders = set(), {"FLAGS"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            allowed |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.Attribute) and node.attr in FLAG_REGISTRY:
            allowed.add(id(node.value))
        if isinstance(node, ast.Assign):
            value = node.value
            if isinstance(value, ast.Attribute) and value.attr == "FLAGS":
                allowed.add(id(value))
            if isinstance(value, ast.Call) and getattr(value.func, "attr", "").startswith("DEFINE_"):
                holders |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return [
        f"{module}:{node.lineno} reads {name} outside a function named main"
        for node in ast.walk(tree)
        if id(node) not in allowed
        and isinstance(getattr(node, "ctx", None), ast.Load)
        and (name := getattr(node, "id", None) or getattr(node, "attr", None)) in holders
        and (isinstance(node, ast.Name) or name == "FLAGS")
    ]


@functools.cache
def without_lazy_exports(source):
    """The source without its module-level `__getattr__`: what that imports is loaded on demand only."""
    tree = ast.parse(source)
    tree.body = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name == "__getattr__")]
    return ast.unparse(tree)


def reach(module, files):
    """Every name that a module imports, itself or through our own files (the packages' __init__ included)."""
    files = {name: without_lazy_exports(source) for name, source in files.items()}
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in files:
            waiting += imports(files[name], name)
        parts = name.split(".")  # a.b.c loads a and a.b too; c may be a name inside a.b
        waiting += [".".join(parts[:i]) for i in range(1, len(parts))]
        if f"{name}.__init__" in files:
            waiting.append(f"{name}.__init__")
    return seen


def heavy(names):
    """TensorFlow, Keras, and what of keras_mae is not the plain Python that ends every command."""
    light = ("keras_mae", "keras_mae.__init__", "keras_mae.commandline")
    return sorted(
        name
        for name in names
        if name.split(".")[0] in ("tensorflow", "keras", "keras_mae")
        and name not in light
        and not name.startswith("keras_mae.commandline.")
    )


def test_no_import_goes_through_a_wall():
    violations = [v for module, source in source_files().items() for v in import_violations(source, module)]
    assert violations == []


def test_flags_are_read_in_main_only():
    violations = [v for module, source in source_files().items() for v in flag_violations(source, module)]
    assert violations == []


@pytest.mark.parametrize("tool", NO_TENSORFLOW)
def test_sharding_tools_do_without_tensorflow(tool):
    files = source_files()
    assert tool in files
    assert heavy(reach(tool, files)) == []


def test_the_files_are_found():
    files = source_files()
    for module in (
        "keras_mae.layers.patches",
        "keras_mae.models.mae",
        "pipeline.manifest",
        "pipeline.__init__",
    ):
        assert module in files


@pytest.mark.parametrize(
    "module, source",
    [
        ("pipeline.order", "import keras_mae"),
        ("pipeline.order", "from keras_mae.layers import patches"),
        ("pipeline.order", "def f():\n    from tools import demo"),
        ("keras_mae.layers.patches", "from keras_mae.models.mae import MaskedAutoencoder"),
        ("keras_mae.layers.patches", "from ..models import mae"),
        ("keras_mae.layers.__init__", "from ..models import mae"),
        ("keras_mae.layers.patches", "import tensorflow as tf"),
        ("keras_mae.models.mae", "from tensorflow.keras import layers"),
        ("keras_mae.models.mae", "import keras_mae.training.adamw"),
        ("keras_mae.models.mae", "from keras.src.backend import tensorflow"),
        ("keras_mae.models.mae", "from pipeline import load"),
        ("keras_mae.training.run", "import pipeline.dataset"),
        ("keras_mae.training.run", "from keras_mae import pretrain"),
        ("keras_mae.training.run", "from keras_mae import evaluation"),
        ("keras_mae.recipes.pretrain", "from keras_mae.models import vit"),
        ("keras_mae.recipes.pretrain", "from keras_mae import training"),
        ("keras_mae.pretrain", "from tools.demo import run"),
        ("keras_mae.__init__", "from keras_mae.training import run"),
    ],
)
def test_checker_sees_a_wrong_import(module, source):
    assert len(import_violations(source, module)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("pipeline.order", "import numpy\nfrom pipeline import manifest\nfrom . import sources"),
        ("keras_mae.layers.attention", "import math\nimport keras\nfrom .patches import patchify"),
        ("keras_mae.models.mae", "from keras_mae.layers.patches import patchify\nfrom keras import ops"),
        ("keras_mae.training.run", "import tensorflow as tf\nfrom keras_mae.models import vit"),
        ("keras_mae.pretrain", "from pipeline import load\nfrom keras_mae import recipes, training"),
        ("tools.demo", "from tools import make_shards\nfrom keras_mae import pretrain\nimport pipeline"),
    ],
)
def test_checker_lets_a_right_import_pass(module, source):
    assert import_violations(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "FLAGS = flags.FLAGS\ndef build():\n    return FLAGS.size",
        "from absl import flags\ndef build():\n    return flags.FLAGS.size",
        "FLAGS = flags.FLAGS\nSIZE = FLAGS['size'].value",
        "FLAGS = flags.FLAGS\ndef run():\n    build(FLAGS)",
        "SIZE = flags.DEFINE_string('size', 'base', '')\ndef build():\n    return SIZE.value",
    ],
)
def test_checker_sees_a_flag_read_outside_main(source):
    assert len(flag_violations(source, "keras_mae.pretrain")) == 1


def test_checker_lets_main_read_flags():
    source = "FLAGS = flags.FLAGS\nSIZE = flags.DEFINE_string('s', '', '')\n"
    source += "def main(_):\n    print(FLAGS.a, SIZE.value)"
    assert flag_violations(source, "keras_mae.pretrain") == []


def test_checker_follows_imports_to_tensorflow():
    files = {
        "tools.__init__": "",
        "tools.make_shards": "from pipeline import writing",
        "pipeline.__init__": "def __getattr__(name):\n    from pipeline.dataset import load\n    return load",
        "pipeline.writing": "import numpy",
        "pipeline.dataset": "import tensorflow",
    }
    assert heavy(reach("tools.make_shards", files)) == []
    files["pipeline.writing"] = "def f():\n    from pipeline.dataset import load"
    assert heavy(reach("tools.make_shards", files)) == ["tensorflow"]
    files["pipeline.writing"] = "import numpy"
    files["pipeline.__init__"] = "from .dataset import load"
    assert heavy(reach("tools.make_shards", files)) == ["tensorflow"]
