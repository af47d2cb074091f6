"""torch.optim's Adam family as one fused pass over tensors where they lie: the classes of torch, and two more.

    optimizer = fastadam.torch.AdamW(model.parameters(), lr=3e-4)

is the only line of a training that changes. Beside them: `flatten_`, the parameters of a module in one flat tensor, and
`adamw_step`, AdamW as a function of lists of CPU tensors, and `GradScaler`, torch's without its own pass over the
gradients. This package needs torch, 2.7 or newer; `import fastadam`
alone does not.
"""

from fastadam.hosts import require

require("torch", "fastadam.torch")

from fastadam.torch.family import Adam, Adamax, AdamW, AdEMAMix, Lion, NAdam, RAdam  # noqa: E402  (the check comes first)
from fastadam.torch.flatten import flatten_  # noqa: E402  (the check comes first)
from fastadam.torch.functional import adamw_step  # noqa: E402  (the check comes first)
from fastadam.torch.scaler import GradScaler  # noqa: E402  (the check comes first)

__all__ = ["AdEMAMix", "Adam", "AdamW", "Adamax", "GradScaler", "Lion", "NAdam", "RAdam", "adamw_step", "flatten_"]
