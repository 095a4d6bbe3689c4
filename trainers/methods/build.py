"""The method that a configuration names.

To add a method: write its file, its settings in `trainers.methods.config`, and its line in `METHODS`.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from curation.base.config import Config
from trainers.methods import config as configs
from trainers.methods.barlow_twins import BarlowTwins
from trainers.methods.byol import Byol
from trainers.methods.classify import Classify
from trainers.methods.deepcluster import DeepCluster
from trainers.methods.dino import Dino
from trainers.methods.dinov2 import Dinov2
from trainers.methods.ibot import Ibot
from trainers.methods.method import Method
from trainers.methods.moco_v2 import MocoV2
from trainers.methods.moco_v3 import MocoV3
from trainers.methods.npid import Npid
from trainers.methods.simclr import Simclr
from trainers.methods.supcon import Supcon
from trainers.methods.swav import Swav
from trainers.methods.vicreg import Vicreg
from trainers.methods.w_mse import Wmse

METHODS: dict[type[Config], Callable[[Any, Callable[[], nn.Module]], Method]] = {
    configs.BarlowTwinsConfig: BarlowTwins,
    configs.ByolConfig: Byol,
    configs.ClassifyConfig: Classify,
    configs.DeepClusterConfig: DeepCluster,
    configs.DinoConfig: Dino,
    configs.Dinov2Config: Dinov2,
    configs.IbotConfig: Ibot,
    configs.MocoV2Config: MocoV2,
    configs.MocoV3Config: MocoV3,
    configs.NpidConfig: Npid,
    configs.SimclrConfig: Simclr,
    configs.SupconConfig: Supcon,
    configs.SwavConfig: Swav,
    configs.VicregConfig: Vicreg,
    configs.WmseConfig: Wmse,
}


def build_method(config: configs.MethodConfig, backbone: Callable[[], nn.Module]) -> Method:
    """The method that `config` names; `backbone()` makes a new encoder network with `num_features`."""
    return METHODS[type(config)](config, backbone)
