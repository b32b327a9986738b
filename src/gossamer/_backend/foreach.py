"""torch's foreach functions. One call works on many tensors, so a step of many small tensors needs few launches.

Their names are private in torch (``torch._foreach_add_``), but torch's optimizers use them. Only this file uses these
names, for torch >= 2.10. A function whose name ends in ``_`` changes its first argument.
"""

# pyright: strict, reportPrivateUsage=false, reportPrivateImportUsage=false

import torch

abs = torch._foreach_abs
add = torch._foreach_add
add_ = torch._foreach_add_
addcdiv_ = torch._foreach_addcdiv_
addcmul_ = torch._foreach_addcmul_
clamp_max_ = torch._foreach_clamp_max_
clamp_min_ = torch._foreach_clamp_min_
copy_ = torch._foreach_copy_
div_ = torch._foreach_div_
lerp = torch._foreach_lerp
lerp_ = torch._foreach_lerp_
mul = torch._foreach_mul
mul_ = torch._foreach_mul_
norm = torch._foreach_norm
reciprocal_ = torch._foreach_reciprocal_
sign_ = torch._foreach_sign_
sqrt = torch._foreach_sqrt
sub = torch._foreach_sub
sub_ = torch._foreach_sub_
