"""The methods by name: one line each."""

from __future__ import annotations

from pfedmma_deploy.errors import UsageError, nearest
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.clip_adapter import CLIP_ADAPTER
from pfedmma_deploy.methods.fedavg_mma import FEDAVG_MMA
from pfedmma_deploy.methods.fedclip import FEDCLIP
from pfedmma_deploy.methods.feddat import FEDDAT
from pfedmma_deploy.methods.fedmaple import FEDMAPLE
from pfedmma_deploy.methods.fedotp import FEDOTP
from pfedmma_deploy.methods.fedpgp import FEDPGP
from pfedmma_deploy.methods.fedtpg import FEDTPG
from pfedmma_deploy.methods.fml import FML
from pfedmma_deploy.methods.local import LOCAL
from pfedmma_deploy.methods.pfedmma import PFEDMMA
from pfedmma_deploy.methods.pfedmoap import PFEDMOAP
from pfedmma_deploy.methods.pfedpt import PFEDPT
from pfedmma_deploy.methods.plora import PLORA
from pfedmma_deploy.methods.promptfl import PROMPTFL
from pfedmma_deploy.methods.tap import TAP
from pfedmma_deploy.methods.zero_shot import ZERO_SHOT

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        PFEDMMA,
        ZERO_SHOT,
        LOCAL,
        FEDAVG_MMA,
        PLORA,
        TAP,
        PFEDPT,
        FML,
        FEDDAT,
        FEDCLIP,
        CLIP_ADAPTER,
        PROMPTFL,
        FEDPGP,
        FEDOTP,
        PFEDMOAP,
        FEDTPG,
        FEDMAPLE,
    )
}


def get_method(name: str) -> Method:
    """The method called `name`. Raises `UsageError` naming the known ones."""
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(f"no method is called {name!r}{nearest(name, METHODS)} (known: {known})")
    return METHODS[name]
