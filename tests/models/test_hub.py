"""Weights that timm fetches: one sentence, quickly, where they are not on this machine and cannot be fetched."""

import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from ciss.config import ConfigError
from ciss.models import WeightsError, create_encoder, hub
from ciss.runs import check as runs_check
from ciss.runs.check import _network_problems, check

NAME = "resnet10t"


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch):
    """An empty cache, no proxy, and a process that has not asked yet."""
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    monkeypatch.delenv(hub.WAIT)
    for clear in (hub._reachable.cache_clear, _network_problems.cache_clear):
        clear()
    yield
    for clear in (hub._reachable.cache_clear, runs_check._network_problems.cache_clear):
        clear()


def refuse(*_, **__):
    raise OSError("Network is unreachable")


def hang(*_, **__):
    time.sleep(2)
    raise OSError("timed out")


@pytest.mark.parametrize("connect", [refuse, hang])
def test_no_network_is_said_by_the_check(project, monkeypatch, connect):
    monkeypatch.setattr(socket, "create_connection", connect)
    if connect is hang:
        monkeypatch.setenv(hub.WAIT, "0.2")
    model = {"encoder": NAME, "pretrained": True, "output_stride": 16}
    project.document["benchmarks"]["tiny"]["model"] |= model
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        check(project.config)
    assert time.perf_counter() - started < 5
    (line,) = str(caught.value).splitlines()
    assert line.startswith("params.yaml: benchmarks.tiny.model.pretrained: timm's weights of resnet10t are not in")
    assert "huggingface.co cannot be reached" in line and "timm/resnet10t.c3_in1k" in line and "model.weights" in line


def test_no_network_is_said_at_training(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "hf_hub_download", None)
    with pytest.raises(WeightsError, match="cannot be reached. Fetch model.safetensors of https://huggingface.co/timm"):
        create_encoder(NAME, 16, pretrained=True)


def test_offline_by_choice(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", None)
    assert "cannot be reached" in hub.unavailable(NAME)


def test_a_download_that_fails_is_one_sentence(monkeypatch):
    asked = []

    def download(*arguments, **_):
        asked.append(arguments)
        raise LocalEntryNotFoundError("the connection broke\nand more")

    monkeypatch.setenv(hub.WAIT, "0")
    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(
        WeightsError, match=r"fetching them failed \(the connection broke\). Fetch .* model.weights"
    ) as e:
        create_encoder(NAME, 16, pretrained=True)
    assert len(asked) == 1 and "\n" not in str(e.value)


def test_cached_weights_need_no_network(monkeypatch, tmp_path):
    torch.manual_seed(0)
    weights = timm.create_model(NAME).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert hub.unavailable(NAME) is None and hub.cached_weights(NAME) == Path(tmp_path, "model.safetensors")
    encoder = create_encoder(NAME, 16, pretrained=True)
    assert torch.equal(encoder.body.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])


def test_encoders_without_weights_ask_nobody(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert hub.unavailable("ciss_tiny") is None and hub.cached_weights("ciss_tiny") is None
