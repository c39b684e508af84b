"""The benchmarks behind `ssmn bench`: one table of them, and records that can be compared later.

A benchmark is a function that returns plain values; `run` adds what they depend on (machine, threads,
versions, commit, settings, the machine's floors) and `save` keeps that as JSON.
"""

from ssmn.bench.decode import decode
from ssmn.bench.layers import layers
from ssmn.bench.loss import loss
from ssmn.bench.prefill import prefill
from ssmn.bench.quality import measure_quality
from ssmn.bench.registry import BENCHMARKS, Benchmark, run, save
from ssmn.bench.scan import scan
from ssmn.bench.seed_table import attention_counts, seed_table
from ssmn.bench.soak import soak
from ssmn.bench.train import train

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "attention_counts",
    "decode",
    "layers",
    "loss",
    "measure_quality",
    "prefill",
    "run",
    "save",
    "scan",
    "seed_table",
    "soak",
    "train",
]
