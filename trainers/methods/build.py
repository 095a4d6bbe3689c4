"""Self-supervised methods, one file each.

To add one: write its file, its config in `trainers.methods.config`, and its line in `build_method`.
"""

from collections.abc import Callable

from torch import nn

from trainers.methods import config as configs
from trainers.methods.method import Method


def build_method(config: configs.MethodConfig, backbone: Callable[[], nn.Module]) -> Method:
    """The method `config` names; `backbone()` makes a new encoder network with `num_features`."""
    from trainers.methods.barlow_twins import BarlowTwins
    from trainers.methods.byol import Byol
    from trainers.methods.classify import Classify
    from trainers.methods.deepcluster import DeepCluster
    from trainers.methods.dino import Dino
    from trainers.methods.dinov2 import Dinov2
    from trainers.methods.ibot import Ibot
    from trainers.methods.moco_v2 import MocoV2
    from trainers.methods.moco_v3 import MocoV3
    from trainers.methods.npid import Npid
    from trainers.methods.simclr import Simclr
    from trainers.methods.supcon import Supcon
    from trainers.methods.swav import Swav
    from trainers.methods.vicreg import Vicreg
    from trainers.methods.w_mse import Wmse

    match config:
        case configs.Dinov2Config():
            return Dinov2(config, backbone)
        case configs.IbotConfig():
            return Ibot(config, backbone)
        case configs.DinoConfig():
            return Dino(config, backbone)
        case configs.SwavConfig():
            return Swav(config, backbone)
        case configs.DeepClusterConfig():
            return DeepCluster(config, backbone)
        case configs.SupconConfig():
            return Supcon(config, backbone)
        case configs.SimclrConfig():
            return Simclr(config, backbone)
        case configs.MocoV2Config():
            return MocoV2(config, backbone)
        case configs.MocoV3Config():
            return MocoV3(config, backbone)
        case configs.ByolConfig():
            return Byol(config, backbone)
        case configs.BarlowTwinsConfig():
            return BarlowTwins(config, backbone)
        case configs.VicregConfig():
            return Vicreg(config, backbone)
        case configs.WmseConfig():
            return Wmse(config, backbone)
        case configs.NpidConfig():
            return Npid(config, backbone)
        case configs.ClassifyConfig():
            return Classify(config, backbone)
