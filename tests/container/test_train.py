"""a training's checkpoints, its command line, and what it refuses, in words"""

import json
import math
import os
import subprocess
import sys
import threading
from itertools import chain

import pytest
import torch

from torchdock.inside import check, train, workloads
from torchdock.inside.workloads import checkpoint, digits, loop
from torchdock.inside.workloads.processes import Processes

CLASSIFIER = workloads.get("classifier")
CNN = workloads.get("cnn")


def command(*words: object, cwd: object, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does, on the CPU."""
    argv = [sys.executable, "-m", "torchdock.inside.train", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(check.ROOT / "src"), **more}
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)


def refusal(*words: object, capsys, cwd, monkeypatch) -> str:
    """Run it in this process where it must refuse: exit code 2, one line, no traceback; return the line."""
    monkeypatch.chdir(cwd)
    try:
        code = train.main([*map(str, words), "--device", "cpu"])
    except SystemExit as error:
        code = error.code
    told = capsys.readouterr().err
    assert code == 2, told
    return told.strip().splitlines()[-1]


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """`refused(*words)`: the line with which the command line refuses them, in an empty folder."""
    # Its handlers belong to the process of a training, not to this one.
    monkeypatch.setattr(train.signal, "signal", lambda *given: None)
    return lambda *words: refusal(*words, capsys=capsys, cwd=tmp_path, monkeypatch=monkeypatch)


def after(steps: int):
    """A `stopping` that says so once this many steps have been made."""
    made = iter(range(steps - 1))
    return lambda: next(made, None) is None


@pytest.fixture(scope="module")
def whole() -> loop.Training:
    """Two epochs that nobody stopped."""
    return loop.train(CNN, loop.settings(CNN, epochs=2, seed=3))


@pytest.mark.parametrize("steps", [1, 44, 60])
def test_resumes_to_the_bit_wherever_it_was_stopped(whole, tmp_path, steps):
    """After the first step, with an epoch (44 steps), in the middle of one: order, dropout and Adam go on."""
    file, settings = tmp_path / "checkpoint.pt", loop.settings(CNN, epochs=2, seed=3)
    part = loop.train(CNN, settings, save=file, stopping=after(steps))
    assert not part.finished
    content = checkpoint.read(file)
    assert content["epoch"] * 44 + content["step"] == steps
    resumed = loop.train(CNN, settings, resumed=content)
    assert (resumed.losses, resumed.scores, resumed.weights) == (whole.losses, whole.scores, whole.weights)


def test_global_generator_is_left_alone():
    """Random numbers of the caller are the same whether a training ran in between or not."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loop.train(CLASSIFIER, loop.settings(CLASSIFIER, epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_each_batch(world):
    """Together they take what one takes, each example once; the next epoch in another order."""
    shares = [loop.order(100, 0, 8, 0, Processes(rank, rank, world, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {12}
    alone = loop.order(100, 0, 8, 0)
    assert [sorted(chain(*batch)) for batch in zip(*shares, strict=True)] == [sorted(batch) for batch in alone]
    assert len(set(chain(*alone))) == 96
    assert loop.order(100, 0, 8, 1) != alone != loop.order(100, 1, 8, 0)


def test_bf16_learns_and_is_another_run(whole):
    """--amp bf16 computes in it: near to float32's losses, not equal to them."""
    mixed = loop.train(CNN, loop.settings(CNN, epochs=1, seed=3, amp="bf16"))
    assert mixed.losses[0] != whole.losses[0]
    assert mixed.losses[0] == pytest.approx(whole.losses[0], rel=0.05)


def test_a_diverged_training_says_so(tmp_path):
    """A loss that is no number ends the run, and leaves the last good checkpoint."""
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(loop.Diverged, match="smaller --rate"):
        loop.train(CLASSIFIER, loop.settings(CLASSIFIER, rate=1e20), save=file)
    assert not file.exists()


def test_a_reader_never_finds_a_part(tmp_path):
    """While one is written again and again, each read finds a whole one; nothing else is left in the folder."""
    file, content = tmp_path / "checkpoint.pt", dict.fromkeys(checkpoint.KEYS, 0)
    content["model"] = {"weight": torch.zeros(200_000)}
    checkpoint.write(file, content)
    done = threading.Event()

    def again():
        for number in range(40):
            checkpoint.write(file, {**content, "epoch": number})
        done.set()

    writer = threading.Thread(target=again)
    writer.start()
    found = set()
    while not done.is_set():
        found.add(checkpoint.read(file)["epoch"])
    writer.join()
    assert len(found) > 1
    assert checkpoint.read(file)["epoch"] == 39
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_command_line(tmp_path):
    """Progress, TensorBoard's log, one JSON document, a checkpoint; --resume goes on to the whole run's end."""
    words = ("--model", "classifier", "--device", "cpu", "--json")
    first = command(*words, "--epochs", 1, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "epoch 1/1  loss " in first.stderr
    assert json.loads(first.stdout)["checkpoint"] == "runs/classifier/checkpoint.pt"
    again = command(*words, "--epochs", 2, "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "goes on after epoch 1, step 0" in again.stderr
    document, whole = json.loads(again.stdout), loop.train(CLASSIFIER, loop.settings(CLASSIFIER, epochs=2))
    assert (document["losses"], document["weights"]) == (list(whole.losses), whole.weights)
    assert document["finished"] is True

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "runs" / "classifier")).Reload()
    points = log.Scalars("loss/training")
    assert [point.step for point in points] == [1, 2]
    assert [point.value for point in points] == pytest.approx(document["losses"], rel=1e-6)


def test_a_file_of_ones_own(tmp_path):
    """A changed copy of a workload trains by its path."""
    text = (check.ROOT / "src/torchdock/inside/workloads/classifier.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text.replace("784, 128", "784, 16").replace("128, 10", "16, 10"))
    workload = workloads.get(str(tmp_path / "mine.py"))
    assert [tuple(weight.shape) for weight in workload.model().parameters()] == [(16, 784), (16,), (10, 16), (10,)]
    assert math.isfinite(loop.train(workload, loop.settings(workload, epochs=1)).score)


def test_an_unknown_model_is_refused(refused, tmp_path):
    """Its line names those that there are."""
    assert "'resnet' is no model" in refused("--model", "resnet")
    assert "resnet18" in refused("--model", "resnet")
    assert "mine.py is no file" in refused("--model", "mine.py")
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert "mine.py defines no WORKLOAD" in refused("--model", "mine.py")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.py"]


def test_numbers_that_cannot_be_are_refused(refused, tmp_path, monkeypatch):
    """A batch larger than the data, one that the processes cannot share, half of torchrun's variables."""
    assert "more than the 1437 training examples" in refused("--batch", 5000)
    assert "--rate" in refused("--rate", "-1")
    assert "--epochs" in refused("--epochs", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "Start with torchrun" in refused()
    assert list(tmp_path.iterdir()) == [], "the folder of a run that never began"


def test_a_folder_that_cannot_be_written_is_refused(refused, tmp_path):
    """The line names it."""
    (tmp_path / "file").touch()
    assert "--output file/run: Not a directory" in refused("--output", "file/run")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write everywhere
        assert "Permission denied" in refused("--output", "closed")


def test_what_is_no_checkpoint_is_refused(refused, tmp_path):
    """Cut off, damaged, foreign, or another run's: named, and not touched; and none is overwritten unasked."""
    output, file = tmp_path / "run", tmp_path / "run" / "checkpoint.pt"
    output.mkdir()
    loop.train(CLASSIFIER, loop.settings(CLASSIFIER, epochs=1), save=file)
    good = file.read_bytes()
    resume = ("--output", output, "--resume")

    assert "--overwrite begins anew" in refused("--output", output)
    assert "--model classifier" in refused("--model", "cnn", *resume)
    assert "seed 0, and this run has 1" in refused("--seed", 1, *resume)
    assert "--overwrite begins anew" in refused("--seed", 1, *resume)
    file.write_bytes(good[: len(good) // 2])
    assert "only a part of one" in refused(*resume)
    middle = len(good) // 2
    file.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    assert "damaged" in refused(*resume)
    torch.save({"weights": torch.zeros(3)}, file)
    assert "something else than a checkpoint" in refused(*resume)
    torch.save(CLASSIFIER.model(), file)  # a pickle that would run code
    assert "not made by this training program" in refused(*resume)
    file.write_bytes(b"")
    assert "only a part of one" in refused(*resume)
    content = {**dict.fromkeys(checkpoint.KEYS, 0), "workload": "classifier", "settings": {}, "model": {}}
    checkpoint.write(file, {**content, "settings": {**vars(loop.settings(CLASSIFIER))}})
    assert "of another model than this classifier" in refused(*resume)
    assert file.exists()


def test_damaged_data_is_refused(refused, tmp_path, monkeypatch):
    """A truncated data file is named, with the remedy, before a step is made."""
    damaged = tmp_path / "digits.csv.gz"
    damaged.write_bytes(digits.FILE.read_bytes()[:-1000])
    monkeypatch.setattr(digits.load, "__defaults__", (damaged,))
    assert f"{damaged} is damaged" in refused()
    assert "Remedy: restore the file" in refused("--model", "cnn")
