"""Everything is moved to the device that works on it: training, resuming and sampling on a pretended one (pretend.py)."""
import sys

import numpy as np
import pytest
import torch

import diffusion
import pretend
import safe
import sample
import train
from runs import UNSCORED


@pytest.fixture
def pretended(monkeypatch):
    pretend.pretend(monkeypatch)
    monkeypatch.setattr(safe, "pick_device", lambda name="auto": pretend.DEVICE)
    with pretend.Pretended():
        yield monkeypatch


def test_a_pretended_device_notices_what_is_left_on_the_cpu(pretended):
    here, there = torch.ones(3, device=pretend.DEVICE), torch.ones(3)
    assert (here + there.to(pretend.DEVICE)).tolist() == [2, 2, 2] and here[torch.tensor([0])].tolist() == [1]
    for mixed in (lambda: here + there, lambda: torch.cat((here, there)), lambda: there[here > 0], lambda: here.numpy()):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")                      # torch thinks that these hold nothing
def test_training_and_resuming_mix_no_devices(pretended, tmp_path, one_thread):
    pretended.setattr(sys, "argv", ["train.py", "--run", str(tmp_path / "run"), "--steps", "2", "--compile", "off", "--micro-batch", "2", "--complement",
                                    *UNSCORED])
    pretended.setattr(train, "any_of", lambda flag, device: True)                  # as after Ctrl-C
    with pytest.raises(safe.DataError, match="stopped after step 1 of 2"):
        train.main()
    pretended.setattr(train, "any_of", lambda flag, device: False)
    pretended.setattr(sys, "argv", ["train.py", "--run", str(tmp_path / "run"), "--resume"])
    train.main()
    assert (tmp_path / "run" / "checkpoint.pt").exists() and (tmp_path / "run" / "index.html").exists()


@pytest.mark.parametrize("noise_there", [True, False])                            # as on cuda; as on mps, which has no float64
def test_sampling_mixes_no_devices(noise_there, trained, pretended, one_thread):
    if noise_there:
        pretended.setattr(sample.Run, "on", lambda run, array: torch.from_numpy(np.array(array)).to(pretend.DEVICE))
    run = sample.load_run(trained[0], pretend.DEVICE)
    few = dict(seed=1, steps=2, candidates=2, rounds=1, correct=1)
    for sampler in diffusion.SAMPLERS:
        sample.generate(run, "text-to-image", ["a small red circle on white"] * 3, sampler=sampler, top_k=9, top_p=0.9, guidance=1.0, growing=True, **few)
    for task, prompt in (("text-to-speech", "forty"), ("text", ""), ("image", None), ("speech", None)):
        made = sample.generate(run, task, [prompt] * 2, **few)
    for kind, sound in (("speech-to-text", made.outputs["speech"][0]), ("image-to-text", np.zeros((32, 32, 3), np.uint8))):
        sample.generate(run, kind, [sound], **few)
