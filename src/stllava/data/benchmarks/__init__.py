"""Published medical VQA benchmarks, and your own, as `Sample` records.

One file a benchmark finds its rows; `benchmark` compares them with what is published and leaves out what cannot be used;
`importing` writes them for the other stages.
"""

from stllava.data.benchmarks.benchmark import NAMES, Benchmark, read_benchmark
from stllava.data.benchmarks.benchmark_import import import_benchmark
from stllava.data.benchmarks.pathvqa import find_pathvqa, pathvqa_files
from stllava.data.benchmarks.published import compare_published
from stllava.data.benchmarks.slake import Language, find_slake, slake_files
from stllava.data.benchmarks.vqa_rad import VQA_RAD_TEST, VqaRad, read_vqa_rad, vqa_rad_files

__all__ = [
    "NAMES",
    "VQA_RAD_TEST",
    "Benchmark",
    "Language",
    "VqaRad",
    "compare_published",
    "find_pathvqa",
    "find_slake",
    "import_benchmark",
    "pathvqa_files",
    "read_benchmark",
    "read_vqa_rad",
    "slake_files",
    "vqa_rad_files",
]
