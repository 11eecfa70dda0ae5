"""What the benchmarks share: paired timings, peak memory, machine facts, tables, options.

Contestants run in turn, A B A B, in one process: whatever else the machine is doing slows all of
them, so the ratio of two runs of one round says more than either time. A table shows the median of
those ratios and, in brackets, the smallest and the largest. On a machine whose cores are all taken
a contestant of several threads still loses more than one of a single thread; the processor's
seconds, summed over the threads, stand beside the clock's to show it.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from monai_segloss.files import replacing

__all__ = [
    "Comparison",
    "Contestant",
    "Ratio",
    "Timing",
    "begin",
    "compare",
    "make_parser",
    "peak_memory",
    "positive",
    "print_comparison",
    "print_table",
    "write_report",
]

_PACKAGES = ("monai", "torch", "numpy", "scipy", "edt")
_WAIT_POLICY = "OMP_WAIT_POLICY"
_ADVICE = f"""\
On a machine that others use too, set {_WAIT_POLICY}=passive: threads that spin while they wait
for one another take the processor from those they wait for."""
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_MMAP_BYTES = 1 << 16


# --------------------------------------------------------------------------- paired timings


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        name: its row in the table.
        run: one run; what it returns is dropped.
        runs: runs per round, of which the median counts: for one that is short beside the others.
        warm_up: whether to run it once before the clock starts.
        target: the ratio that is aimed at, in words.
    """

    name: str
    run: Callable[[], object]
    runs: int = 1
    warm_up: bool = True
    target: str = ""


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of the rounds' ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f} to {self.high:.2f}]"


@dataclass(frozen=True)
class Timing:
    """A contestant's seconds by the clock and of the processor, one number per round."""

    name: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    target: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)

    def over(self, other: Timing) -> Ratio:
        """How many times as long as ``other``, round by round."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Comparison:
    """The timings of one case; the first contestant is what the others are compared with.

    Attributes:
        case: what was timed.
        timings: one per contestant.
        facts: further columns, contestant -> column -> value.
    """

    case: str
    timings: tuple[Timing, ...]
    facts: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per contestant, for a table or for JSON."""
        first = self.timings[0]
        return [
            {
                "case": self.case,
                "contestant": timing.name,
                "seconds": timing.seconds,
                "cpu_seconds": timing.cpu_seconds,
                "median_seconds": timing.median,
                "median_cpu_seconds": timing.cpu_median,
                "times_the_first": dataclasses.asdict(timing.over(first)),
                "target": timing.target,
                **self.facts.get(timing.name, {}),
            }
            for timing in self.timings
        ]


def compare(
    case: str,
    contestants: Sequence[Contestant],
    repeats: int,
    device: torch.device,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Comparison:
    """Time contestants in turn, ``repeats`` rounds of all of them."""
    for contestant in contestants:
        if contestant.warm_up:
            contestant.run()
    rounds: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contestants}
    for _ in range(repeats):
        for contestant in contestants:
            runs = [_seconds(contestant.run, device) for _ in range(contestant.runs)]
            wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
            rounds[contestant.name].append((wall, cpu))
    timings = []
    for contestant in contestants:
        wall, cpu = zip(*rounds[contestant.name], strict=True)
        timings.append(Timing(contestant.name, wall, cpu, contestant.target))
    return Comparison(case, tuple(timings), facts or {})


def _seconds(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    _synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------- peak memory


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that one run holds at its height, beyond what was held before it.

    On CUDA by torch's own count. On the CPU by the kernel's high-water mark of the process, which
    sees NumPy and SciPy too; Linux alone can reset that mark, elsewhere the answer is None.
    Afterwards glibc maps every large block afresh, so time first and measure memory last.
    """
    run()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _forget_high_water():
        return None
    resident = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - resident)


def _forget_high_water() -> bool:
    """Give freed memory back, keep no more of it, and reset the high-water mark, if that works."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError, TypeError):
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status: no line {field}")


# --------------------------------------------------------------------------- what ran where


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Processor, threads, versions and device of this run."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }
    if _WAIT_POLICY in os.environ:
        facts[_WAIT_POLICY] = os.environ[_WAIT_POLICY]
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 1)
    return facts


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


# --------------------------------------------------------------------------- tables and files


def begin(title: str, args: argparse.Namespace) -> None:
    """Set the threads; print the benchmark's name and what it runs on."""
    torch.set_num_threads(args.threads or (1 if args.quick else 2))
    facts = ", ".join(f"{name} {value}" for name, value in machine_facts(args.device).items())
    print(f"{title}\n{facts}", flush=True)


def print_comparison(comparison: Comparison) -> None:
    """The table of one case."""
    print(f"\n{comparison.case}")
    print_table([_shown(row) for row in comparison.rows()])


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows in aligned columns, in the order in which the columns first occur."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([row.get(name, "") for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    # A long benchmark is watched while it runs.
    print(end="", flush=True)


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    shown = {
        "": row["contestant"],
        "seconds": f"{row['median_seconds']:.4g}",
        "of the CPU": f"{row['median_cpu_seconds']:.4g}",
        "times the first": str(Ratio(**row["times_the_first"])),
    }
    if row["target"]:
        shown["aim"] = row["target"]
    if row.get("differs_by") is not None:
        shown["differs by"] = f"{row['differs_by']:.1e}"
    return shown


def write_report(
    arguments: argparse.Namespace, comparisons: Sequence[Comparison], **more: Any
) -> None:
    """Write machine, arguments and results to ``--output`` as JSON, if it was given."""
    path = arguments.output
    if path is None:
        return
    report = {
        "machine": machine_facts(arguments.device),
        "arguments": {name: _plain(value) for name, value in vars(arguments).items()},
        "rows": [row for comparison in comparisons for row in comparison.rows()],
        **more,
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, list, type(None))) else str(value)


# --------------------------------------------------------------------------- options


def make_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, epilog=_ADVICE, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--device", type=_device, default=torch.device("cpu"), help="cpu or cuda (default: cpu)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: 2; with --quick 1)")
    parser.add_argument(
        "--repeats",
        type=positive,
        default=repeats,
        help="rounds, in each of which every contestant runs (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny inputs, to see that it runs; the ratios mean nothing",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    return parser


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda: torch finds no CUDA device here")
    return device


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)
