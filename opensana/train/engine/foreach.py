"""torch's operations on lists of tensors: on a GPU a few launches for all, on a CPU one by one."""

from typing import Any

import torch

_torch: Any = torch  # whose stubs do not name them

add_ = _torch._foreach_add_
copy_ = _torch._foreach_copy_
lerp = _torch._foreach_lerp
lerp_ = _torch._foreach_lerp_
mul_ = _torch._foreach_mul_
norm = _torch._foreach_norm
sub_ = _torch._foreach_sub_
