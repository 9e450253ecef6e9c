"""`sepstop finetune` as a file, for launchers that want one.

torchrun --nproc-per-node=2 scripts/finetune.py --config configs/encoder.yaml
"""

from sepstop.finetune.run import run_as_command

if __name__ == "__main__":
    run_as_command()
