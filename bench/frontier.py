"""Ours and the PyPI package `tracer-llm`: coverage and agreement on traffic that no fit saw, in one run.

python bench/frontier.py [--sets banking77,clinc150,metatool] [--targets 0.90,0.95,0.97,0.99] [--systems NAMES]
    [--peer-env FOLDER | --no-peer] [--peer-plain] [--cache FOLDER] [--seed 0] [--out FILE [--resume]] [--write-docs]

Every system fits the same `traces.jsonl` and is judged on the same `traffic.jsonl`; those that read embeddings read the
same ones, computed once with all-minilm-l6-v2 from TRACER_MODELS, one text at a time, and cached. The peer is installed
into an environment of its own and run by `peer_tracer_llm.py`. One fit a target, each in a process of its own. Prints a
row as soon as it is measured and, with --out, writes everything again after each; --resume keeps the rows that are
there. Exits with 1 where a fit or an evaluation failed; a refusal or a broken promise is a result, not a failure.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter_ns
from typing import Any

import numpy as np

from bench.stamp import stamp
from policies.encoders import TransformerEncoder
from policies.traces import read_traces

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TRACER_DATA", ROOT / ".." / "shared" / "data"))
MODEL = Path(os.environ.get("TRACER_MODELS", ROOT / ".." / "shared" / "models")) / "all-minilm-l6-v2"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tracer-bench"
DOCS = ROOT / "docs" / "benchmarks.md"
PEER = "0.3.3"
SYSTEMS = {
    "ours": "ours",
    "ours-grouped": "ours, `--assume grouped`",
    "ours-transformer": "ours, with MiniLM",
    "ours-given": "ours, MiniLM vectors alone",
    "tracer-llm": f"tracer-llm {PEER}, MiniLM vectors alone",
}
NEEDS_MODEL = {"ours-transformer", "ours-given", "tracer-llm"}
SETS = ("banking77", "clinc150", "metatool")
SHIFTED = {"clinc150"}  # traffic not drawn like the traces: where --assume grouped is for
STRANGE_TARGET = 0.97
HEAD = (
    "system",
    "data set",
    "target",
    "certified coverage",
    "live coverage",
    "live agreement",
    "without transformer",
    "fit",
    "decision p50 / p99",
)

Row = dict[str, Any]


class RunFailedError(Exception):
    """A command of a row failed; the message is the last thing it said."""


@dataclass(frozen=True)
class Split:
    """One JSONL file, and its embeddings where some system reads them."""

    file: Path
    vectors: Path | None


@dataclass(frozen=True)
class Job:
    """One fit: which system, on what, for which target, in which folder."""

    system: str
    name: str
    target: float
    seed: int
    splits: dict[str, Split]
    policy: Path
    peer: tuple[str, ...]  # the start of the command that runs it

    def vectors(self, split: str) -> str:
        """The embeddings of a split; they are there for every system in `NEEDS_MODEL`."""
        found = self.splits[split].vectors
        if found is None:
            raise RunFailedError(f"no embeddings of {self.name}")
        return str(found)


def main() -> None:
    """Run every combination that is asked for and not yet there, and print the tables."""
    arguments = parse(sys.argv[1:])
    if not DATA.is_dir():
        sys.exit(f"no data sets in TRACER_DATA ({DATA})")
    peer = peer_command(arguments) if "tracer-llm" in arguments.systems else ()
    result = read_result(arguments.out, arguments.seed) if arguments.resume else {"rows": [], "encoder_us_p50": {}}
    result |= {"stamp": stamp(), "seed": arguments.seed, "peer": f"tracer-llm {PEER}"}
    print(head(HEAD))
    with tempfile.TemporaryDirectory(prefix="tracer-frontier-") as folder:
        for name in arguments.sets:
            splits, encoder_us = prepare(name, arguments.cache, bool(NEEDS_MODEL & set(arguments.systems)))
            if encoder_us is not None:
                result["encoder_us_p50"][name] = encoder_us
            for target in arguments.targets:
                for system in arguments.systems:
                    if system == "ours-grouped" and name not in SHIFTED:
                        continue
                    policy = Path(folder) / f"{system}-{name}-{target}"
                    job = Job(system, name, target, arguments.seed, splits, policy, peer)
                    print(row_line(found_or_measured(job, result, arguments.out)), flush=True)
    text = render(result)
    print("\n" + text.partition("\n\n")[2])
    failed = sum("error" in row for row in result["rows"])
    if failed:
        sys.exit(f"{failed} rows failed" + ("; docs are as they were" if arguments.write_docs else ""))
    if arguments.write_docs:
        write_docs(DOCS, "bench/frontier.py", text)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, checked; exits with argparse's message where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=_names(SETS), default=",".join(SETS))
    parser.add_argument("--targets", type=_targets, default="0.90,0.95,0.97,0.99")
    parser.add_argument("--systems", type=_names(tuple(SYSTEMS)), default=",".join(SYSTEMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer-env", type=Path, default=CACHE / f"tracer-llm-{PEER}")
    parser.add_argument("--no-peer", action="store_true", help="leave tracer-llm out")
    parser.add_argument(
        "--peer-plain", action="store_true", help="let tracer-llm repeat its sweeps: three times as long"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="where embeddings are kept")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out already has")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    found = parser.parse_args(argv)
    if found.resume and found.out is None:
        parser.error("--resume needs --out")
    if found.no_peer:
        found.systems = [name for name in found.systems if name != "tracer-llm"]
    if not MODEL.is_dir() and NEEDS_MODEL & set(found.systems):
        print(f"no {MODEL.name} in TRACER_MODELS: rows that need it are left out", file=sys.stderr)
        found.systems = [name for name in found.systems if name not in NEEDS_MODEL]
    return found


def _names(known: tuple[str, ...]) -> Any:
    def split(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return split


def _targets(text: str) -> list[float]:
    found = [float(part) for part in text.split(",")]
    if not all(0 < target < 1 for target in found):
        raise argparse.ArgumentTypeError("targets lie between 0 and 1")
    return found


def peer_command(arguments: argparse.Namespace) -> tuple[str, ...]:
    """How `peer_tracer_llm.py` is started in the peer's environment, which is made where there is none."""
    python, script = install_peer(arguments.peer_env), Path(__file__).with_name("peer_tracer_llm.py")
    # -I: neither this folder nor PYTHONPATH may put this repository's `tracer` in the place of the peer's.
    return str(python), "-I", str(script), *(["--plain"] if arguments.peer_plain else [])


def install_peer(folder: Path) -> Path:
    """The Python of an environment that holds the peer, made where there is none. Exits where pip cannot."""
    python = folder / "bin" / "python"
    ask = [str(python), "-I", "-c", "from importlib.metadata import version; print(version('tracer-llm'))"]
    if python.is_file() and subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() == PEER:
        return python
    print(f"installing tracer-llm {PEER} into {folder}", file=sys.stderr)
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", f"tracer-llm=={PEER}"])
    except RunFailedError as error:
        sys.exit(f"cannot install tracer-llm {PEER} ({error}); --no-peer leaves it out")
    return python


def prepare(name: str, cache: Path, with_vectors: bool) -> tuple[dict[str, Split], float | None]:
    """A data set's files and their embeddings, and the encoder's median microseconds on its traffic, text by text."""
    files = {split: DATA / name / f"{split}.jsonl" for split in ("traces", "traffic", "out_of_scope")}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not with_vectors:
        return {split: Split(file, None) for split, file in files.items()}, None
    encoder = TransformerEncoder.from_folder(MODEL)
    texts = {split: [trace.input for trace in read_traces(file).traces] for split, file in files.items()}
    splits = {
        split: Split(file, embeddings(encoder, texts[split], cache, f"{name}-{split}")) for split, file in files.items()
    }
    return splits, median_us(encoder, texts["traffic"][:500])


def embeddings(encoder: TransformerEncoder, texts: list[str], cache: Path, name: str) -> Path:
    """The `.npy` file (n, d) of the texts' vectors, computed where the cache does not have it.

    Its name holds a hash of the encoder's identity and of every text, so that it never belongs to others.
    """
    key = hashlib.sha256(json.dumps([encoder.identity, texts], sort_keys=True).encode()).hexdigest()
    file = cache / f"{name}-{key[:16]}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part.npy")
        np.save(partial, encoder.encode_many(texts, threads=os.cpu_count() or 1))
        partial.replace(file)
    return file


def median_us(encoder: TransformerEncoder, texts: list[str]) -> float:
    """Median microseconds of one text through the encoder."""
    times = []
    for text in texts:
        started = perf_counter_ns()
        encoder.encode(text)
        times.append((perf_counter_ns() - started) / 1e3)
    return round(float(np.median(times)), 1)


def found_or_measured(job: Job, result: dict[str, Any], out: Path | None) -> Row:
    """The job's row: the one that `result` has, or a new one, which goes into `result` and into the file."""
    key = {"system": job.system, "set": job.name, "target": job.target}
    for row in result["rows"]:
        if all(row[name] == value for name, value in key.items()):
            return dict(row)
    try:
        measured = measure_peer(job) if job.system == "tracer-llm" else measure_ours(job)
    except RunFailedError as error:
        measured = {"error": str(error)}
    row = {**key, "commit": result["stamp"]["commit"], **measured}
    result["rows"].append(row)
    if out is not None:
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        partial.replace(out)
    return row


def measure_ours(job: Job) -> Row:
    """`tracer fit`, then `tracer evaluate` on the traffic and on what is out of scope."""
    flags = {
        "ours-grouped": ["--assume", "grouped"],
        "ours-transformer": ["--features", f"lexical,static,transformer:{MODEL}"],
    }.get(job.system, [])

    def given(split: str) -> list[str]:
        return ["--embeddings", job.vectors(split)] if job.system == "ours-given" else []

    fit_flags = ["--target", str(job.target), "--seed", str(job.seed), "--out", str(job.policy), *flags]
    started = monotonic()
    fit = _tracer("fit", str(job.splits["traces"].file), *fit_flags, *given("traces"))
    row: Row = {"fit": fit, "fit_seconds": round(monotonic() - started, 2)}
    if fit["refused"]:
        return row
    judged = {
        split: _tracer("evaluate", str(job.splits[split].file), "--policy", str(job.policy), *given(split))
        for split in ("traffic", "out_of_scope")
        if split in job.splits
    }
    row["live"] = judged["traffic"]
    if "out_of_scope" in judged:
        row["out_of_scope"] = {"n": judged["out_of_scope"]["n"], "handled": judged["out_of_scope"]["n_handled"]}
    return row


def measure_peer(job: Job) -> Row:
    """The same by `peer_tracer_llm.py`, in the peer's environment."""
    command = [*job.peer, "--policy", str(job.policy), "--target", str(job.target), "--seed", str(job.seed)]
    command += ["--traces", str(job.splits["traces"].file), "--embeddings", job.vectors("traces")]
    for split, option in (("traffic", "traffic"), ("out_of_scope", "out-of-scope")):
        if split in job.splits:
            command += [f"--{option}", str(job.splits[split].file), f"--{option}-embeddings", job.vectors(split)]
    found: Row = json.loads(_run(command))
    return {**found, "fit_seconds": found["fit"]["seconds"]}


def _tracer(*arguments: str) -> Row:
    found: Row = json.loads(_run([sys.executable, "-m", "tracer", *arguments, "--json"]))
    found.pop("policy", None)  # a folder that is gone when the result is read
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # Errors of the command line come in a box.
        said = [line.strip(" │╭╮╰╯─") for line in (done.stdout + done.stderr).splitlines()]
        raise RunFailedError(next(filter(None, reversed(said)), f"exit code {done.returncode}"))
    return done.stdout


def read_result(file: Path, seed: int) -> dict[str, Any]:
    """What an earlier run wrote, without its failures. Exits where its seed was another."""
    if not file.is_file():
        return {"rows": [], "encoder_us_p50": {}}
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if result["seed"] != seed:
        sys.exit(f"{file} holds rows of seed {result['seed']}, not {seed}")
    result["rows"] = [row for row in result["rows"] if "error" not in row]
    return result


def render(result: dict[str, Any]) -> str:
    """The main table, the table of inputs out of scope, and one line on where and with what, as Markdown."""
    order = {name: place for place, name in enumerate((*SETS, *SYSTEMS))}
    rows = sorted(result["rows"], key=lambda row: (order[row["set"]], row["target"], order[row["system"]]))
    parts = ["\n".join([head(HEAD), *map(row_line, rows)])]
    strange = [row for row in rows if row["target"] == STRANGE_TARGET and "out_of_scope" in row]
    if strange:
        lines = [head(("system, CLINC150 at 0.97", "out-of-scope inputs", "wrongly handled", "share"))]
        for row in strange:
            n, handled = row["out_of_scope"]["n"], row["out_of_scope"]["handled"]
            lines.append(f"| {SYSTEMS[row['system']]} | {n:,} | {handled:,} | {handled / n:.3f} |")
        parts.append("\n".join(lines))
    where = result["stamp"]
    commits = sorted({short(row["commit"]) for row in rows})
    line = f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {', '.join(commits)}"
    line += f", {where['date'][:10]}, seed {result['seed']}."
    if result["encoder_us_p50"]:
        times = ", ".join(f"{us:,.0f} us on {name}" for name, us in result["encoder_us_p50"].items())
        line += f" One text through MiniLM: p50 {times}; rows on MiniLM vectors alone leave that time out."
    return "\n\n".join([*parts, line])


def short(commit: str | None) -> str:
    """Twelve digits of a commit, and whether the tree differed from it."""
    if commit is None:
        return "?"
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


def head(names: tuple[str, ...]) -> str:
    """The first two lines of a Markdown table."""
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def row_line(row: Row) -> str:
    """One row of the main table."""
    cells = [SYSTEMS[row["system"]], row["set"], f"{row['target']:.2f}"]
    if "error" in row:
        return _line([*cells, f"failed: {row['error'].replace('|', '/')}", "", "", "", "", ""])
    fit = row["fit"]
    if fit["refused"]:
        return _line([*cells, "refused", "", "", "", f"{row['fit_seconds']:.0f} s", ""])
    live = row["live"]
    return _line(
        [
            *cells,
            f"{fit['coverage']:.3f}",
            f"{live['coverage']:.3f}",
            agreement(live["teacher_agreement"], row["target"]),
            without_transformer(row),
            f"{row['fit_seconds']:.0f} s",
            f"{live['decide_us_p50']:,.0f} / {live['decide_us_p99']:,.0f} us",
        ]
    )


def agreement(found: float | None, target: float) -> str:
    """Agreement on handled calls, and whether it is what was promised."""
    if found is None:
        return "none handled"
    return f"{found:.4f} ({'kept' if found >= target else '**broken**'})"


def without_transformer(row: Row) -> str:
    """Share of all calls that the cascade's first stage answered, so that no transformer ran for them."""
    if row["system"] != "ours-transformer":
        return ""
    handled = row["live"]["by_stage"].get("0", 0) if row["fit"]["method"] == "rsb" else 0
    return f"{handled / row['live']['n']:.3f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_docs(file: Path, marker: str, text: str) -> None:
    """Put `text` between `<!-- marker -->` and the next `<!-- end -->`. Raises ValueError where they are missing."""
    before, start, rest = file.read_text(encoding="utf-8").partition(f"<!-- {marker} -->")
    _, end, after = rest.partition("<!-- end -->")
    if not start or not end:
        raise ValueError(f"{file}: no <!-- {marker} --> ... <!-- end -->")
    file.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
