"""All measurements of bench/README.md: `python -m bench` (or `make bench`)."""

import subprocess
import sys

for name in ("start", "augment", "epoch", "loading", "contrastive", "pretraining"):
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)
