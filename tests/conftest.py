"""One thread a test, so that results do not depend on the machine's cores; no deadlines: a busy machine misses them."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
