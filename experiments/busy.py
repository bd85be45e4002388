"""What of its speed does training keep beside another busy process?

Question: OpenMP's threads spin while they wait for each other. Alone on the machine that is the
fastest way to wait. If another process takes one of the cores, the spinning threads wait for one
that does not run. How long should they spin before they sleep?
Set-up: `python -m tools.bench`, the step of the default run, with several values of GOMP_SPINCOUNT,
alone and beside a process that only counts. 300000 is what libgomp takes by itself. files.py sets
1000 where nothing is set. Each figure is one bench, the median of 40 steps. The machine has to be
idle but for this.

    python experiments/busy.py
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common
from common import files

SPINS = ("300000", "10000", "3000", "1000", "0")
BUSY = [sys.executable, "-c", "while True: pass"]
SMALLEST = ("--steps", "2", "--laps", "1", "--compile", "off", "--batch-tokens", "128",
            "--dtype", "float32", "--shape", '{"width": 32, "depth": 1}')
QUICK = dict(spins=SPINS[-1:], flags=SMALLEST)


def tokens_per_second(spin, flags):
    environment = {**os.environ, "GOMP_SPINCOUNT": spin}
    environment.pop("OMP_NUM_THREADS", None)  # of the studies; the bench takes all cores
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        subprocess.run([sys.executable, "-m", "tools.bench", "--json", path, *flags], check=True,
                       cwd=common.HERE.parent, env=environment, stdout=subprocess.DEVNULL)
        return files.read_json(path)["diffusion"]["tokens_per_second"]


def study(folder, spins=SPINS, flags=("--steps", "40", "--laps", "1", "--compile", "off")):
    found = {}
    for spin in spins:
        alone = tokens_per_second(spin, flags)
        other = subprocess.Popen(BUSY)
        try:
            beside = tokens_per_second(spin, flags)
        finally:
            other.kill()
            other.wait()
        found[spin] = {"alone": round(alone), "beside a busy process": round(beside)}
    return {"cores": os.cpu_count(), "tokens a second": found}


if __name__ == "__main__":
    common.command_line("busy", __doc__, study, None, QUICK)
