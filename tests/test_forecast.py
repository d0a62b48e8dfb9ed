"""What a run says of its own time and disk space, and batches as large as the memory allows."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
import yaml

import dae3d
from dae3d.errors import Dae3dError
from dae3d.planning import auto_batch
from dae3d.planning.size import MARGIN, device_memory
from dae3d.planning.trial import PretrainTrial
from dae3d.settings import resolve
from dae3d.training import forecast
from dae3d.training.beginning import with_all_sizes
from dae3d.training.forecast import Forecast
from dae3d.training.pretrain_settings import PretrainSettings

LINE = re.compile(r"(\S+) s a step \(steps (\d+) to (\d+)\), (.+?) left")


def say(monkeypatch, caplog, resumed_at: int = 0, accumulate: int = 1, paused: float = 0.0) -> list[str]:
    """The lines of a run of 1000 steps of 2 s, of which validation takes `paused` seconds after step 15."""
    module = torch.nn.Linear(1, 1)
    module.run_settings = SimpleNamespace(accumulate=accumulate)
    module.seconds_not_training = 0.0
    trainer = SimpleNamespace(
        global_step=resumed_at, max_steps=1000, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    now = [0.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: now[0])
    callback = Forecast(keep=2, disk=3_000_000)
    with caplog.at_level(logging.INFO, "dae3d"):
        for batch in range(40 * accumulate):
            now[0] += 2.0 / accumulate
            if (batch + 1) % accumulate == 0:
                trainer.global_step += 1
            callback.on_train_batch_end(trainer, module, None, None, batch)
            if trainer.global_step - resumed_at == 15 and (batch + 1) % accumulate == 0:
                now[0] += paused
                module.seconds_not_training += paused
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("resumed_at", [0, 100])
def test_one_line_after_twenty_steps(monkeypatch, caplog, resumed_at, accumulate):
    [line] = say(monkeypatch, caplog, resumed_at, accumulate, paused=50.0)
    seconds, first, last, left = LINE.match(line).groups()
    assert float(seconds) == 2.0
    assert (int(first), int(last)) == (resumed_at + 11, resumed_at + 20)
    assert left == {0: "32 min 40 s", 100: "29 min 20 s"}[resumed_at]
    assert "3.0 MB on disk for 2 checkpoints" in line


def test_a_run_says_it_and_keeps_as_much(tiny_store, tiny_settings, tmp_path, caplog):
    often = {"max_steps": 22, "val_every": 11, "save_every": 11, "keep": 1}
    with caplog.at_level(logging.INFO, "dae3d"):
        run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **(tiny_settings | often))
    said = [record.getMessage() for record in caplog.records if LINE.match(record.getMessage())]
    assert len(said) == 1
    assert said[0] in (run / "log.txt").read_text()
    size, unit = re.search(r"; (\S+) (\w+) on disk for 1 ", said[0]).groups()
    kept = [*(run / "checkpoints").iterdir(), *(run / "weights").iterdir()]
    there = sum(path.stat().st_size for path in kept)
    # Names and metadata are not counted.
    assert unit == "MB"
    assert float(size) * 1e6 == pytest.approx(there, rel=0.25)
    assert float(size) * 1e6 < there


# Batches


@pytest.fixture
def memory_for(tiny_settings, tiny_store, tmp_path, monkeypatch):
    """Set the memory of the device to what so many crops need, and the margin."""
    given = resolve(PretrainSettings, {"data": tiny_store, "out": tmp_path, **tiny_settings})
    trial = PretrainTrial(with_all_sizes(given, (1, 1, 1)))

    def set_memory(crops: int) -> None:
        # An odd number cannot be calculated: the mean of its neighbours.
        around = (crops // 2 * 2, (crops + 1) // 2 * 2)
        needed = sum(trial.memory(count, (32, 32, 32)).total for count in around) // 2
        monkeypatch.setattr(auto_batch, "device_memory", lambda *_: int(needed / (1 - MARGIN["cpu"])) + 1)

    return set_memory


@pytest.mark.parametrize(("fits", "chosen"), [(4, 4), (7, 6)])
def test_as_many_crops_as_fit_an_even_number_for_pairs(
    memory_for, tiny_store, tiny_settings, tmp_path, caplog, fits, chosen
):
    memory_for(fits)
    once = {"max_steps": 1, "batch_size": "auto", "save_every": 1, "val_crops": 1}
    with caplog.at_level(logging.INFO, "dae3d"):
        run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **(tiny_settings | once))
    assert f"batch_size: {chosen}, by calculation" in caplog.text
    assert yaml.safe_load((run / "settings.yaml").read_text())["batch_size"] == chosen


def test_a_resumed_run_keeps_the_number(memory_for, tiny_store, tiny_settings, tmp_path, caplog):
    memory_for(4)
    given = tiny_settings | {"batch_size": "auto", "save_every": 1, "val_crops": 1}
    run = dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **(given | {"max_steps": 1}))
    memory_for(2)
    dae3d.pretrain(out=run, resume=True, max_steps=2)
    dae3d.pretrain(out=run, resume=True, max_steps=3, batch_size="auto")
    assert yaml.safe_load((run / "settings.yaml").read_text())["batch_size"] == 4


def test_too_little_memory_for_a_batch(tiny_store, tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_batch, "device_memory", lambda *_: 10**6)
    with pytest.raises(Dae3dError, match=r"batch_size: a step with 2 crops of 32 x 32 x 32 takes .* 1\.0 MB"):
        dae3d.pretrain(data=tiny_store, out=tmp_path / "run", **(tiny_settings | {"batch_size": "auto"}))
    assert not (tmp_path / "run").exists()


def test_fine_tuning_chooses_too(tiny_finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_batch, "device_memory", lambda *_: 10**8)
    often = {"max_steps": 1, "val_every": 9, "batch_size": "auto"}
    run = dae3d.finetune(out=tmp_path / "run", **(tiny_finetune | often))
    assert 1 <= yaml.safe_load((run / "settings.yaml").read_text())["batch_size"] < 100


def test_processes_that_share_a_cpu_may_not_choose():
    with pytest.raises(Dae3dError, match="several processes on CPUs"):
        device_memory("cpu", 2)
