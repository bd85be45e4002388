"""Everything is moved to the device that works on it: a pretended one (pretend.py) would notice."""
import numpy as np
import pretend
import pytest
import torch
from runs import begun, call, told

import diffusion
import files
import sample
import train
from tools import score

# torch thinks that these hold nothing
pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter")


@pytest.fixture
def pretended(trained, monkeypatch):  # trained: made before torch is changed
    pretend.pretend(monkeypatch)
    monkeypatch.setattr(files, "pick_device", lambda name="auto": pretend.DEVICE)
    with pretend.Pretended():
        yield monkeypatch


def test_a_pretended_device_notices_what_is_left_on_the_cpu(pretended):
    here = torch.ones(3, device=pretend.DEVICE)
    there = torch.ones(3)
    assert (here + there.to(pretend.DEVICE)).tolist() == [2, 2, 2]
    assert here[torch.tensor([0])].tolist() == [1]  # as on a GPU
    for mixed in (lambda: here + there, lambda: torch.cat((here, there)),
                  lambda: there[here > 0], lambda: here.numpy()):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_and_resuming_mix_no_devices(optimizer, trained, pretended, tmp_path):
    folder = begun(trained[0], tmp_path / "run", steps=2, optimizer=optimizer, micro_batch=3,
                   complement=True)
    pretended.setattr(train.page, "write", lambda folder, run=None: "")
    agreed = train.agreed
    pretended.setattr(train, "agreed",  # as after Ctrl-C
                      lambda value: (value[0], True) if isinstance(value, tuple) else value)
    assert "stopped after step 1 of 2" in told(train.main, "--resume", "--run", folder)[1]
    pretended.setattr(train, "agreed", agreed)
    call(train.main, "--resume", "--run", folder)
    assert files.load(folder / "checkpoint.pt")["step"] == 2


# noise is drawn there as on cuda, or here as for mps, which has no float64
@pytest.mark.parametrize("noise_there", [True, False])
def test_sampling_and_the_bound_mix_no_devices(noise_there, trained, quick, pretended):
    if noise_there:
        pretended.setattr(sample.Run, "rows",
                          lambda run, ids: run.stream.describe(ids.to(pretend.DEVICE)))
    run = sample.load_run(trained[0], pretend.DEVICE)
    for sampler in diffusion.SAMPLERS:
        sample.generate(run, "speech-to-text", [np.zeros(5000, np.float32)], sampler=sampler,
                        steps=2, top_k=9, top_p=0.9, guidance=1.0, candidates=1)
    sample.generate(run, "text", ["the red", None], length=12, seed=1, correct=1)
    if noise_there:
        few = dict(seed=1, steps=2, candidates=2, rounds=1)
        picture = np.zeros((32, 32, 3), np.uint8)
        sample.generate(run, "speech", [None], **few)
        sample.generate(run, "image-to-speech", [picture], steps=2)
        sample.generate(run, "speech-to-image", [np.ones(5000, np.float32)], steps=2)
        assert len(score.bounds(run, rounds=1)) == 7
