"""`sepstop finetune` as a file, for launchers that want one.

torchrun --nproc-per-node=2 scripts/finetune.py --config configs/encoder.yaml
"""

import sys

from sepstop.cli.main import app

if __name__ == "__main__":
    app(["finetune", *sys.argv[1:]])
