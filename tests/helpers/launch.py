"""Scripts in several processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def torchrun(script, *arguments, processes, succeeds=True, **environment):
    """Run a script to its end on the CPU.

    Args:
        script: its path; the tests' modules can be imported in it.
        succeeds: fail the test if the script fails.
        environment: more variables.
    """
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), *map(str, arguments)],
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert not succeeds or done.returncode == 0, done.stderr[-3000:]
    return done
