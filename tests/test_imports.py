"""Who may import whom: walks every import of the packages and holds it against the map of layers."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A module may import modules of its own layer and of lower ones; the longest prefix that fits a module decides its layer.
LAYERS = {
    "pixellm": 0,
    "pixellm.errors": 0, "pixellm.masks": 0, "pixellm.settings": 0, "pixellm.storage": 0, "pixellm.drawing": 0, "pixellm.photos": 0,
    "pixellm.contours": 0, "pixellm.local_files": 0, "pixellm.s3": 0, "pixellm.uris": 0, "pixellm.photo_headers": 0,
    "pixellm.plain_yaml": 0, "pixellm.typed_values": 0,
    "pixellm.revision": 0, "pixellm.memory": 0, "pixellm.resources": 0,
    "pixellm.model": 1,
    "pixellm.data": 2, "pixellm.inference": 2, "pixellm.evaluation.metrics": 2, "pixellm.evaluation.overlaps": 2,
    "pixellm.testing": 2,
    "pixellm.train": 3, "pixellm.evaluation": 3, "pixellm.curation": 3,
    "jobs": 4, "serve": 4,
}
# Packages that only these modules may import.
RESERVED = {
    "ray": ["pixellm.data.prepare", "pixellm.data.stream", "pixellm.train*", "pixellm.inference.batch",
            "pixellm.inference.predict", "pixellm.evaluation.evaluate", "pixellm.resources",
            "pixellm.curation*", "jobs*", "serve*"],
    "deepspeed": ["pixellm.train*"],
    "peft": ["pixellm.train*", "pixellm.inference*"],
    "fastapi": ["serve*", "jobs.benchmarks.serving*"],
    "serve": ["serve*"],
    "serve.app": ["serve*", "jobs.benchmarks.serving*"],
    "serve.cluster": ["serve*", "jobs*"],
    "serve.config": ["serve*", "jobs*"],
    "serve.metrics": ["serve*", "jobs.validation.metrics"],
    "serve.schemas": ["serve*", "jobs*"],
    "serve.client": ["serve*", "jobs*"],
    "serve.keys": ["serve*", "jobs*"],
    "jobs": ["jobs*"],
    "pixellm.testing": ["pixellm.testing"],
}
# Packages outside the standard library and pixellm that these modules get by with.
ENOUGH = {
    "pixellm.errors": set(),
    "pixellm.settings": {"pydantic"},
    "pixellm.plain_yaml": {"yaml"},
    "pixellm.typed_values": {"pydantic", "yaml"},
    "pixellm.masks": {"numpy", "PIL", "pycocotools"},
    "pixellm.drawing": {"numpy", "PIL"},
    "pixellm.contours": {"numpy"},
    "pixellm.photos": {"numpy", "PIL"},
    "pixellm.photo_headers": set(),
    "pixellm.revision": set(),
    "pixellm.memory": set(),
    "pixellm.local_files": set(),
    "pixellm.s3": {"botocore", "pyarrow"},
    "pixellm.storage": {"boto3", "botocore", "pyarrow"},
    "pixellm.data.prompts": {"numpy"},
    "pixellm.evaluation.metrics": {"numpy", "scipy", "pycocotools"},
    "pixellm.evaluation.overlaps": {"numpy", "pycocotools"},
    "pixellm.model": {"numpy", "PIL", "torch", "transformers", "safetensors", "tokenizers", "huggingface_hub"},
    "pixellm.train.config": {"pydantic"},
    "serve.config": {"pydantic"},
    "serve.model_config": {"pydantic"},
    "serve.autoscaling": set(),
    "serve.schemas": {"pydantic"},
    "serve.client": {"httpx", "PIL", "pydantic"},
}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def has_prefix(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def longest_prefix(module: str, prefixes: dict) -> str | None:
    return max((prefix for prefix in prefixes if has_prefix(module, prefix)), key=len, default=None)


FILES = {module_name(file): file for package in ("pixellm", "jobs", "serve") for file in sorted((ROOT / package).rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """Dotted names that `module` imports anywhere, also inside functions; `from a import b` counts as `a.b` where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
                base = ".".join(filter(None, [*package[: len(package) - node.level + 1], base]))
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names}
    return found


def imports() -> Iterator[tuple[str, str]]:
    for module in FILES:
        for imported in sorted(imports_of(module)):
            yield module, imported


def test_imports_point_down_the_layers():
    def layer(module: str) -> int:
        prefix = longest_prefix(module, LAYERS)
        assert prefix, f"{module} belongs to no layer: name it in LAYERS"
        assert prefix != "pixellm" or module == "pixellm", f"{module} belongs to no layer: name it in LAYERS"
        return LAYERS[prefix]

    ours = [(module, imported) for module, imported in imports() if imported.split(".")[0] in ("pixellm", "jobs", "serve")]
    wrong = [f"{module} (layer {layer(module)}) imports {imported} (layer {layer(imported)})"
             for module, imported in ours if layer(imported) > layer(module)]
    assert not wrong, "\n".join(wrong)


def test_reserved_packages_are_imported_where_they_may_be():
    wrong = []
    for module, imported in imports():
        reserved = longest_prefix(imported, RESERVED)
        if reserved and not any(fnmatch(module, pattern) for pattern in RESERVED[reserved]):
            wrong.append(f"{module} imports {imported}; only {', '.join(RESERVED[reserved])} may")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("prefix", ENOUGH)
def test_modules_that_stay_light(prefix):
    wrong = [f"{module} imports {imported}" for module, imported in imports() if has_prefix(module, prefix)
             and imported.split(".")[0] not in ENOUGH[prefix] | {"pixellm", "serve"} | sys.stdlib_module_names]
    assert any(has_prefix(module, prefix) for module in FILES)
    assert not wrong, "\n".join(wrong)


def test_no_circles_between_modules():
    graph = {module: {found for found in imports_of(module) if found in FILES and found != module} for module in FILES}
    for module, found in graph.items():  # a package's own __init__ gathers its modules
        found -= {package for package in found if module.startswith(package + ".")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_serve_starts_without_what_training_needs():
    modules = [module for module in FILES if has_prefix(module, "serve")]
    blocked = ["deepspeed", "peft", "tensorboard", "scipy", "jobs"]
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\n" + "\n".join(f"import {module}" for module in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_platform_stays_a_folder_of_files():
    python = [file for pattern in ("*.py", "*.pyi", "*.pyc") for file in (ROOT / "platform").rglob(pattern)]
    assert not python, "Python below platform/ would hide the standard library's module of that name"


def test_entry_points_are_short_and_have_a_main():
    for module, file in FILES.items():
        if not has_prefix(module, "jobs") or file.name == "__init__.py" or module.startswith(("jobs.benchmarks", "jobs.validation")):
            continue
        source = file.read_text()
        assert "def main(argv: list[str] | None = None) -> None:" in source, f"{module} has no main(argv)"
        assert source.rstrip().endswith('if __name__ == "__main__":\n    main()'), f"{module} does not end with a call of main()"
