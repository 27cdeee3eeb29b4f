"""What a gateway process costs: memory, and the time to its first answer."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from policies.fitting import fit_policy
from policies.settings import FitConfig
from tests.data import dataset
from tests.process_memory import cpu_seconds, linux, of_mapping, resident
from tests.serving import GatewayProcess

pytestmark = linux

_TABLE = "/tracer-"


@pytest.fixture(scope="module")
def banking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The policy of a real data set of 77 labels, and texts of its traffic."""
    traces, traffic = dataset("banking77")
    folder = tmp_path_factory.mktemp("banking") / "policy"
    fit_policy(traces, folder, FitConfig(0.95))
    return folder, [trace.input for trace in traffic]


@pytest.fixture
def gateway(banking: tuple[Path, list[str]], tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway with that policy."""
    with GatewayProcess(tmp_path, banking[0]) as running:
        yield running


def _ask(gateway: GatewayProcess, texts: list[str], project: str = "default") -> None:
    with httpx.Client(base_url=gateway.url) as client:
        for text in texts:
            client.post(f"/{project}/classify", json={"input": text})


def test_a_gateway_stays_small(banking: tuple[Path, list[str]], gateway: GatewayProcess) -> None:
    """150 MB are the bar, with room for other versions of what it is made of; and calls add nothing."""
    _ask(gateway, banking[1])
    before = resident(gateway.process.pid)
    assert before < 165
    _ask(gateway, banking[1])
    assert resident(gateway.process.pid) < before + 3


def test_texts_that_never_come_again_are_not_remembered(
    banking: tuple[Path, list[str]], gateway: GatewayProcess
) -> None:
    """Ten thousand different texts of usual length once stayed in the tokenizer: 40 MB."""
    pieces = banking[1]
    _ask(gateway, pieces)
    before = resident(gateway.process.pid)
    _ask(gateway, [f"{i} {pieces[i % 3_000]} {pieces[i * 7 % 3_000]}" for i in range(4_000)])
    assert resident(gateway.process.pid) < before + 5


def test_more_policies_share_what_is_large(banking: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Nine more of the same kind cost less than 12 MB each; the word vectors and the tokenizer are there once."""
    sizes = []
    for n in (1, 10):
        folder = tmp_path / str(n)
        folder.mkdir()
        names = [f"project{i}" for i in range(n)]
        for name in names:
            shutil.copytree(banking[0], folder / name)
        (folder / "config.yaml").write_text(
            "projects:\n" + "".join(f"  {n}: {{policy: {folder / n}}}\n" for n in names)
        )
        with GatewayProcess(folder, "--config", folder / "config.yaml") as running:
            for name in names:
                _ask(running, banking[1][:100], name)
            sizes.append(resident(running.process.pid))
    assert sizes[1] - sizes[0] < 9 * 12


def test_two_gateways_share_the_word_vectors(banking: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Of the pages that both use each has half."""
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    with GatewayProcess(places[0], banking[0]) as one, GatewayProcess(places[1], banking[0]) as two:
        for running in (one, two):
            _ask(running, banking[1][:500])
        for running in (one, two):
            whole, share = of_mapping(running.process.pid, _TABLE)
            assert whole > 5
            assert share < 0.7 * whole


def test_a_gateway_starts_at_once(banking: tuple[Path, list[str]], tmp_path: Path) -> None:
    """1.5 s from the command to a ready gateway is the bar; where others use the machine, processor time tells more."""
    began = time.monotonic()
    with GatewayProcess(tmp_path, banking[0]) as running:
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        assert cpu_seconds(running.process.pid) < 3
    assert time.monotonic() - began < 15
