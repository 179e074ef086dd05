"""Rooms: imports point one way, folders stay small, heavy dependencies have doors, files say their
purpose.
"""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import autocompress

ROOT = Path(autocompress.__file__).parent
LEVELS = [
    {"errors", "integer_form"},
    {"argument_types"},
    {"candidate"},
    {"results", "task"},
    {"cache", "differences"},
    {"user_code", "model_digest", "spill"},
    {"model"},
    {"compress"},
    {"targets", "measure"},
    {"space", "export"},
    {"search"},
    {"report"},
    {"huggingface"},
    {"tasks", "__init__", "cli", "__main__"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
DOORS = {
    "optuna": {"search", "cli"},  # the command line sets Optuna's verbosity
    "plotly": {"report"},
    "onnx": {"export", "targets"},
    "torch_pruning": {"model"},
    "ray": {"search"},
    "sqlalchemy": {"search"},
    "transformers": {"huggingface"},
    "sklearn": {"huggingface"},
    "PIL": {"huggingface"},
    "datasets": {"huggingface"},
    "pyarrow": {"huggingface"},
    "soundfile": {"huggingface"},
    "onnxruntime_genai": {"export"},
    "ai_edge_litert": {"targets"},
}
NO_VERBS = (
    "What",
    "Whether",
    "Of",
    "How",
    "The",
    "A",
    "An",
    "Where",
    "Which",
    "Those",
    "This",
    "If",
)
MOST_FILES = 12  # in one folder
FILES = sorted(ROOT.rglob("*.py"))
TESTS = Path(__file__).parent
BENCHMARKS = sorted((ROOT.parent / "benchmarks").glob("*.py"))
# What benchmarks import of the package; three files of benchmarks alone go deeper.
INNER = ("bench.py", "bench_latency.py", "bench_search.py")
PUBLIC = ("autocompress", "autocompress.export.compressor", "autocompress.results.")
# Modules without a test at their path, with the test file that covers them.
TESTED_ELSEWHERE = {
    "__main__.py": "search/test_faults.py runs `python -m autocompress`",
    "cli/folder_options.py": "huggingface/test_command_line.py gives all options",
    "cli/shared_options.py": "cli/test_arguments.py parses the options of all commands",
    "cli/values.py": "cli/test_arguments.py parses values of options",
    "export/genai/towers/parts.py": "export/genai/towers/test_sounds.py joins two graphs",
    "export/litert/parts.py": "export/litert/test_check.py counts the bytes of modules",
    "export/litert/translator.py": "export/litert/test_translate.py translates whole graphs",
    "export/litert/values.py": "export/litert/operators/test_shapes.py reads both layouts",
    "export/subject.py": "export/test_probes.py measures the subject of a small model",
    "huggingface/data/batches.py": "huggingface/kinds/text/test_fill_mask.py reads batches",
    "huggingface/data/encoding.py": "huggingface/kinds/text/test_text_classification.py cuts texts",
    "huggingface/data/masks.py": "huggingface/kinds/vision/test_image_segmentation.py reads",
    "huggingface/data/media.py": "huggingface/kinds/vision/test_image_classification.py reads",
    "huggingface/data/objects.py": "huggingface/kinds/vision/test_object_detection.py reads",
    "huggingface/extra.py": "huggingface/test_pretrained.py hides a library",
    "huggingface/folder.py": "huggingface/test_pretrained.py opens good and bad folders",
    "huggingface/kinds/decoded.py": "huggingface/kinds/sound/test_transcription.py decodes",
    "huggingface/kinds/labelled.py": "huggingface/kinds/sound/test_audio_classification.py reads",
    "huggingface/kinds/memory.py": "huggingface/kinds/text/test_text_generation.py limits windows",
    "huggingface/kinds/pairs/chat.py": "huggingface/kinds/pairs/"
    "test_image_text_to_text.py asks with and without a template",
    "huggingface/kinds/pairs/pixels.py": "huggingface/kinds/pairs/"
    "test_image_text_to_text.py reads pictures of all families",
    "huggingface/kinds/parts.py": "huggingface/kinds/text/test_fill_mask.py makes parts",
    "huggingface/loading.py": "huggingface/test_pretrained.py loads good and bad weights",
    "huggingface/metrics/numbers.py": "huggingface/kinds/text/test_embeddings.py asks SciPy",
    "huggingface/metrics/retrieval.py": "huggingface/kinds/pairs/"
    "test_zero_shot_image_classification.py compares recall",
    "huggingface/metrics/segments.py": "huggingface/kinds/vision/"
    "test_image_segmentation.py counts pixels",
    "huggingface/models/decoding.py": "huggingface/kinds/sound/test_transcription.py decodes",
    "huggingface/models/detections.py": "huggingface/kinds/vision/test_object_detection.py finds",
    "huggingface/models/dual.py": "huggingface/kinds/pairs/"
    "test_zero_shot_image_classification.py embeds pairs",
    "huggingface/models/hearing.py": "huggingface/kinds/sound/test_transcription.py decodes",
    "huggingface/models/prompts.py": "huggingface/kinds/text/test_embeddings.py gives prompts",
    "huggingface/models/questions.py": "huggingface/kinds/pairs/"
    "test_visual_question_answering.py asks",
    "huggingface/models/sentence.py": "huggingface/kinds/text/test_embeddings.py pools tokens",
    "huggingface/models/spans.py": "huggingface/kinds/text/test_question_answering.py finds spans",
    "huggingface/models/speech.py": "huggingface/kinds/sound/"
    "test_automatic_speech_recognition.py fills up sounds",
    "huggingface/models/vision_language/features.py": "huggingface/kinds/pairs/"
    "test_image_text_to_text.py compares all families",
    "huggingface/models/vision_language/qwen.py": "huggingface/kinds/pairs/"
    "test_image_text_to_text.py compares all families",
    "huggingface/models/vision_language/wrapper.py": "huggingface/kinds/pairs/"
    "test_image_text_to_text.py compares all families",
    "huggingface/out/card.py": "huggingface/out/test_write.py reads cards and runs their programs",
    "huggingface/out/lines.py": "huggingface/out/test_snippets.py compiles all programs",
    "huggingface/options.py": "huggingface/test_pretrained.py gives wrong options",
    "model/macs.py": "model/test_modules.py counts the MACs of all kinds of modules",
    "model/plain/watch.py": "model/plain/test_plain.py keeps trees that are plain",
    "report/sections.py": "report/test_page.py writes whole pages",
    "report/figures/style.py": "report/figures/test_search.py draws figures of this style",
    "report/latency_info.py": "report/test_info.py reads all tables of a run",
    "search/finish/points.py": "search/finish/test_front_files.py makes points of files",
    "search/opening.py": "search/test_loop.py opens searches, also refused ones",
    "search/workers/database.py": "search/workers/test_storage.py cuts databases off",
    "targets/kernel_arithmetic.py": "export/test_arithmetic.py computes with both kinds of kernel",
    "targets/kernel_models.py": "targets/test_kernels.py times these models",
    "targets/kernel_timing.py": "targets/test_kernels.py times kernels",
    "targets/latency_model/stored_tables.py": "targets/latency_model/test_profile.py keeps tables",
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[str]:
    """Absolute names of the modules that a file imports."""
    names = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "autocompress":
            other = parts[1] if len(parts) > 1 else "__init__"
            assert LEVEL[other] <= LEVEL[room(path)], f"{path} imports {name}"


def test_no_file_imports_itself_through_others() -> None:
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        graph[name] = {other for other in imports(path) if other.startswith("autocompress.")}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the files of the cycle


def test_folders_stay_small() -> None:
    for folder in {path.parent for path in FILES}:
        files = sorted(path.name for path in folder.glob("*.py"))
        assert len(files) <= MOST_FILES, f"{folder}: {files}"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.name)
def test_benchmarks_import_public_names(path: Path) -> None:
    if path.name in INNER:
        return
    public = set(autocompress.__all__)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module == "autocompress":
            names = {alias.name for alias in node.names}
            assert names <= public, f"{path} imports {names - public}"
    for name in imports(path):
        if name.split(".")[0] == "autocompress":
            assert name in PUBLIC or name.startswith(PUBLIC[2]), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_dependencies_have_doors(path: Path) -> None:
    for name in imports(path):
        package = name.split(".")[0]
        if package in DOORS:
            assert room(path) in DOORS[package], f"{path} imports {name}"


def test_every_file_says_its_purpose() -> None:
    for path in FILES:
        assert ast.get_docstring(tree(path)), path


def test_modules_have_a_test_at_their_path() -> None:
    """A module has a test at its path, or a test file elsewhere that is named; never both."""
    without = []
    for path in FILES:
        name = path.relative_to(ROOT)
        if (
            path.name != "__init__.py"
            and not (TESTS / name.with_name(f"test_{path.name}")).exists()
        ):
            without.append(name.as_posix())
    assert sorted(without) == sorted(TESTED_ELSEWHERE)
    for name, reason in TESTED_ELSEWHERE.items():
        assert (TESTS / reason.split()[0]).is_file(), f"{name}: {reason}"


def documented(path: Path) -> list[ast.Module | ast.ClassDef | ast.FunctionDef]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


def test_docstrings_begin_with_a_verb() -> None:
    for path in [*FILES, *BENCHMARKS]:
        for node in documented(path):
            first = (ast.get_docstring(node) or "Return").split()[0]
            assert first not in NO_VERBS, f"{path}: {ast.get_docstring(node)}"


def public(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    """Return functions and methods without a leading underscore that take arguments."""
    functions = []
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            functions += public(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if any(name.arg not in ("self", "cls") for name in names):
                functions.append(node)
    return functions


def test_public_functions_describe_their_arguments() -> None:
    for path in FILES:
        for function in public(tree(path).body):
            text = ast.get_docstring(function) or ""
            assert "Args:" in text, f"{path}: {function.name}"


def test_nothing_is_unpickled() -> None:
    """A run folder, a cache or a storage may come from anybody."""
    for path in FILES:
        names = imports(path)
        assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {
            name.split(".")[0] for name in names
        }, path
        called = {
            node.func.attr
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
        }
        assert not {"load", "save"} & called, path
