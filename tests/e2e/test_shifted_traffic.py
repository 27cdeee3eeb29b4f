"""Traffic that is not drawn like the traces: certified on those, and stopped or held to more on live calls."""

import asyncio
import logging
import random
import shutil
import sys
from pathlib import Path

import orjson
import pytest

from bench.life import Call, Life, living
from gateway.demo import processes
from policies.traces import write_traces
from tests.data import dataset

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.guarantee

TARGET = 0.95
SEEDS = range(6)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A policy of CLINC150's traces with default settings, and the teacher's word on its traffic."""
    traces, traffic = dataset("clinc150")
    folder = tmp_path_factory.mktemp("clinc150")
    write_traces(folder / "traces.jsonl", traces)
    argv = [str(folder / "traces.jsonl"), "--target", str(TARGET), "--out", str(folder / "policy"), "--json"]
    told = orjson.loads(processes.run([sys.executable, "-m", "tracer", "fit", *argv]))
    assert (told["refused"], told["ruling"]) == (False, "iid")
    return folder / "policy", {trace.input: trace.teacher for trace in traffic}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_traces_promised_too_much_of_is_held_to_more_or_stopped(
    tmp_path: Path, certified: tuple[Path, dict[str, str]], seed: int
) -> None:
    """At the certified threshold agreement on this traffic is below the target: that threshold never answers.

    The policy stays in shadow, is demoted, or goes live held to a stricter agreement that is proved on live calls; and
    what it answered agrees with the teacher as often as was promised.
    """
    folder, truth = certified
    shutil.copytree(folder, tmp_path / "policy")
    life = asyncio.run(_lived(tmp_path, truth, seed))
    handled = [call for call in life.calls if call.handled]
    policy = life.summary["policies"][0]
    agreement = sum(not call.wrong for call in handled) / len(handled) if handled else None
    lives = [move["evidence"].get("held_to") for move in life.moves if move["new"] == "live"]
    promoted = next((life.number(move["ts"]) for move in life.moves if move["new"] == "live"), None)
    row = {"state": life.state, "promoted": promoted, "held_to": policy["held_to"], "handled": len(handled)}
    logger.info("seed %d: %s", seed, row | {"agreement": agreement})
    assert len(life.calls) == len(truth)
    assert life.state in ("shadow", "demoted", "live")
    assert all(held_to > TARGET for held_to in lives)
    assert agreement is None or agreement >= TARGET


async def _lived(folder: Path, truth: dict[str, str], seed: int) -> Life:
    """The traffic, each text once, in an order of its own."""
    order = random.Random(seed).sample(list(truth), len(truth))
    async with living(folder, truth.__getitem__, 600, {}) as life:
        await life.send([Call(text, "Which intent?") for text in order])
        await asyncio.sleep(1.5)  # the last audits
    return life
