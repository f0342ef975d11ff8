"""What every test lives with: two threads, no network, no colours.

Warnings as errors and blocked sockets are set in pyproject.toml. The variables below are set
before torch is imported, so that processes started by a test inherit them.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
