"""Training steps as users of other libraries write them, for `train_step.py`. Each function builds one and returns it.

All take crops (V, B, 3, S, S) of one or two sizes, view first, on the device.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_cases import Case

from trainers.models.config import VitConfig

Peer = Callable[[Case, list[Tensor], argparse.Namespace], Callable[[], object]]
MOMENTUM, RATE, CLIP = 0.996, 5e-4, 3.0


def timm_backbone(case: Case) -> nn.Module:
    """The case's encoder as timm has it, for crops of any size."""
    import timm

    config = case.encoder
    if not isinstance(config, VitConfig):
        return timm.create_model(config.model, num_classes=0)
    return timm.models.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=0,
        dynamic_img_size=True,
    )


def bf16(device: torch.device) -> AbstractContextManager[object]:
    """The context of a step: bfloat16 on a GPU, nothing on the CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


class DinoNetwork(nn.Module):
    """Backbone and head of DINO: one forward pass of the backbone for every size of crops, one of the head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        method: Any = case.method
        self.backbone = timm_backbone(case)
        sizes = [int(self.backbone.num_features), method.hidden_dim, method.hidden_dim]  # type: ignore[arg-type]
        layers = [layer for i in range(2) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.GELU())]
        self.projector = nn.Sequential(*layers, nn.Linear(sizes[2], method.bottleneck_dim))
        self.prototypes = nn.Parameter(torch.randn(method.prototypes, method.bottleneck_dim))

    def forward(self, groups: list[Tensor]) -> Tensor:
        features = torch.cat([self.backbone(crops.flatten(0, 1)) for crops in groups])
        return F.linear(F.normalize(self.projector(features), dim=-1), F.normalize(self.prototypes, dim=-1))


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, num_crops: int) -> Tensor:
    """The loss of scores (V B, K) and (2 B, K): the mean over all pairs of different crops."""
    told = F.softmax((teacher.float() - center) / 0.04, dim=-1).chunk(2)
    seen = F.log_softmax(student.float() / 0.1, dim=-1).chunk(num_crops)
    pairs = [-(told[g] * seen[v]).sum(-1).mean() for g in range(2) for v in range(num_crops) if v != g]
    return torch.stack(pairs).mean()


def timm_compile(case: Case, crops: list[Tensor], _: argparse.Namespace) -> Callable[[], object]:
    device = crops[0].device
    student, teacher = DinoNetwork(case).to(device), DinoNetwork(case).to(device).requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    center = torch.zeros(student.prototypes.shape[0], device=device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, fused=True)
    forward, backward_from = torch.compile(student), torch.compile(dino_loss)
    told_by = torch.compile(teacher)
    weights, followers = list(student.parameters()), list(teacher.parameters())
    num_crops = sum(len(group) for group in crops)

    def step() -> None:
        with bf16(device):
            with torch.no_grad():
                told = told_by(crops[:1])
            loss = backward_from(forward(crops), told, center, num_crops)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(followers, weights, 1 - MOMENTUM)
            center.lerp_(told.float().mean(0), 0.1)

    return step


def official_dino(case: Case, crops: list[Tensor], args: argparse.Namespace) -> Callable[[], object]:
    """The modules of facebookresearch/dino in the order in which its loop calls them, on one process."""
    if args.official_dino is None:
        raise harness.Skipped("give --official-dino CHECKOUT")
    sys.path.insert(0, str(args.official_dino))
    import utils
    import vision_transformer
    from main_dino import DINOLoss

    device, encoder, method = crops[0].device, case.encoder, case.method
    assert isinstance(encoder, VitConfig)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )

    def network() -> nn.Module:
        backbone = vision_transformer.VisionTransformer(
            img_size=[encoder.image_size],
            patch_size=encoder.patch_size,
            embed_dim=encoder.dim,
            depth=encoder.depth,
            num_heads=encoder.heads,
            qkv_bias=True,
        )
        head = vision_transformer.DINOHead(
            encoder.dim, method.prototypes, hidden_dim=method.hidden_dim, bottleneck_dim=method.bottleneck_dim
        )
        return utils.MultiCropWrapper(backbone, head).to(device)

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    views = [crop for group in crops for crop in group]
    loss_of = DINOLoss(method.prototypes, len(views), 0.04, 0.04, 0, 100).to(device)
    optimizer = torch.optim.AdamW(utils.get_params_groups(student), lr=RATE)
    on_gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    def step() -> None:
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            loss = loss_of(student(views), teacher(views[:2]), 2)
        loss.item()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        utils.clip_gradients(student, CLIP)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for own, other in zip(student.parameters(), teacher.parameters(), strict=True):
                other.mul_(MOMENTUM).add_((1 - MOMENTUM) * own)
        if on_gpu:
            torch.cuda.synchronize()

    return step


def lightly_dino(case: Case, crops: list[Tensor], _: argparse.Namespace) -> Callable[[], object]:
    """As its examples: crop by crop."""
    from lightly.loss import DINOLoss
    from lightly.models.modules.heads import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    device, method = crops[0].device, case.method

    def network() -> nn.Sequential:
        backbone = timm_backbone(case)
        sizes = (backbone.num_features, method.hidden_dim, method.bottleneck_dim, method.prototypes)
        return nn.Sequential(backbone, DINOProjectionHead(*sizes)).to(device)

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    deactivate_requires_grad(teacher)
    views = [crop for group in crops for crop in group]
    loss_of = DINOLoss(method.prototypes, warmup_teacher_temp_epochs=0).to(device)
    optimizer = torch.optim.AdamW([weight for weight in student.parameters() if weight.requires_grad], lr=RATE)

    def step() -> None:
        update_momentum(student[0], teacher[0], m=MOMENTUM)
        update_momentum(student[1], teacher[1], m=MOMENTUM)
        with bf16(device):
            loss = loss_of([teacher(view) for view in views[:2]], [student(view) for view in views], epoch=2)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _simclr(network: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], crops: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=crops.is_cuda)

    def step() -> None:
        with bf16(crops.device):
            first, second = network(crops.flatten(0, 1)).chunk(2)
            loss = loss_of(first, second)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """SimCLR's loss of two views (B, D) of the same samples."""
    every = F.normalize(torch.cat([first, second]).float(), dim=-1)
    scores = (every @ every.T / 0.1).fill_diagonal_(-torch.inf)
    other = torch.arange(len(every), device=every.device).roll(len(first))
    return F.cross_entropy(scores, other)


def timm_compile_simclr(case: Case, crops: list[Tensor], _: argparse.Namespace) -> Callable[[], object]:
    backbone, method = timm_backbone(case), case.method
    hidden = method.hidden_dim
    head = (nn.Linear(backbone.num_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, method.dim))
    network = nn.Sequential(backbone, *head).to(crops[0].device, memory_format=torch.channels_last)
    return _simclr(torch.compile(network), torch.compile(contrast), crops[0])


def lightly_simclr(case: Case, crops: list[Tensor], _: argparse.Namespace) -> Callable[[], object]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    backbone, method = timm_backbone(case), case.method
    head = SimCLRProjectionHead(backbone.num_features, method.hidden_dim, method.dim)
    return _simclr(nn.Sequential(backbone, head).to(crops[0].device), NTXentLoss(temperature=0.1), crops[0])


PEERS: dict[tuple[str, str], Peer] = {
    ("dino", "timm-compile"): timm_compile,
    ("dino", "official-dino"): official_dino,
    ("dino", "lightly"): lightly_dino,
    ("simclr", "timm-compile"): timm_compile_simclr,
    ("simclr", "lightly"): lightly_simclr,
}
"""By method and name."""
