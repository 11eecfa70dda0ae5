"""Forward and backward of every loss of the taxonomy beside its fastest public peer.

Peers are MONAI, torch and, if they are installed, Kornia and segmentation_models_pytorch; where no
package has a loss, the arithmetic of its first public code (_peers.py), with SciPy's distances
inside forward where such code takes them there. Losses that are MONAI's own in our table stand
beside the other packages'. "ours / it" is the time of ours over that peer's, round by round; the
summary names the fastest peer of each case. "differs by" is the difference of the values, relative
above 1, where the formulas are the same.

Peak memory is that of the benchmark losses.py: what one forward and backward holds beyond its
input, at its height.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import _peers
import monai.losses
import torch
import torch.nn.functional as F
from _peers import Loss
from _timing import (
    Comparison,
    Contestant,
    Ratio,
    begin,
    compare,
    make_parser,
    peak_memory,
    print_table,
    write_report,
)
from losses import ScipyInForward, Size, Step
from torch import Tensor

from monai_segloss.losses import make_loss

OURS = "ours"
# One volume's distances take SciPy seconds.
SLOW_ROUNDS = 3
FORBIDDEN = [(0, 2), (0, 3), (1, 3)]
CLASS_WEIGHT = [0.5, 1.0, 2.0, 4.0]


@dataclass(frozen=True)
class Peer:
    """Somebody else's loss.

    Attributes:
        name: its row.
        loss: loss(logits, target).
        unlike: why its value is another one; empty if it should be ours.
    """

    name: str
    loss: Loss
    unlike: str = ""


@dataclass(frozen=True)
class Case:
    """One loss and its peers.

    Attributes:
        loss: its name in the taxonomy, and what is particular about the case.
        ours: our loss.
        peers: who is measured beside it.
        target: class index, one-hot channels (binary problems), or one binary channel.
        dims: the numbers of axes for which it runs.
        slow: whether a peer takes seconds: fewer rounds.
    """

    loss: str
    ours: Loss
    peers: Sequence[Peer]
    target: Literal["index", "channels", "one channel"] = "index"
    dims: tuple[int, ...] = (2, 3)
    slow: bool = False


@dataclass(frozen=True)
class Packages:
    """The peers that need not be installed."""

    found: dict[str, Any] = field(default_factory=dict)

    def peer(
        self, package: str, name: str, build: Callable[[Any], Loss], unlike: str = ""
    ) -> list[Peer]:
        """One peer, or none if its package is absent."""
        module = f"{package}.losses"
        if module not in self.found:
            try:
                self.found[module] = importlib.import_module(module)
            except (ImportError, RuntimeError) as error:
                # RuntimeError: what a package imports does not fit this torch.
                self.found[module] = None
                print(f"{package} cannot be imported, its losses are left out: {error}")
        losses = self.found[module]
        return [] if losses is None else [Peer(name, build(losses), unlike)]


# --------------------------------------------------------------------------- cases


def _on_index(loss: Loss) -> Loss:
    """For losses that take the class index without a channel."""
    return lambda logits, target: loss(logits, target[:, 0])


def _added(first: Loss, second: Loss) -> Loss:
    return lambda logits, target: first(logits, target) + second(logits, target)


def _times(factor: float, loss: Loss) -> Loss:
    return lambda logits, target: factor * loss(logits, target)


def _power_of_tversky(tversky: Loss, exponent: float) -> Loss:
    return lambda logits, target: (tversky(logits, target) ** exponent).mean()


def distribution_cases() -> list[Case]:
    ours = partial(make_loss, softmax=True, to_onehot_y=True)
    weight = torch.tensor(CLASS_WEIGHT)

    def weighted(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, weight=weight.to(logits))

    in_forward = "SciPy in forward"
    return [
        Case(
            "cross_entropy",
            ours("cross_entropy"),
            [Peer("torch cross_entropy", _on_index(F.cross_entropy))],
        ),
        Case(
            "cross_entropy, class weights",
            ours("cross_entropy", weight=CLASS_WEIGHT),
            [Peer("torch cross_entropy", _on_index(weighted))],
        ),
        Case(
            "balanced_cross_entropy, sigmoid",
            make_loss("balanced_cross_entropy", sigmoid=True),
            [Peer("rebuilt: HED", _peers.balanced_cross_entropy)],
            "channels",
        ),
        Case(
            "balanced_cross_entropy, softmax",
            ours("balanced_cross_entropy", beta=0.7),
            [Peer("rebuilt: clamped p", _peers.clamped_balanced(0.7))],
        ),
        Case("topk", ours("topk"), [Peer("rebuilt: nnU-Net", _peers.topk)]),
        *[
            Case(
                name,
                ours(name),
                [Peer(in_forward, _peers.cross_entropy_times(weigh))],
                slow=True,
            )
            for name, weigh in (
                ("rrw_cross_entropy", _peers.rrw_weight),
                ("distance_penalty_cross_entropy", _peers.distance_penalty_weight),
                ("border_cross_entropy", _peers.border_weight),
            )
        ],
    ]


def region_cases(packages: Packages) -> list[Case]:
    ours = partial(make_loss, softmax=True, to_onehot_y=True)
    theirs: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
    tversky = monai.losses.TverskyLoss
    b = 1.5
    of_b = {"alpha": 1 / (1 + b**2), "beta": b**2 / (1 + b**2)}
    smp = "segmentation_models_pytorch"
    power = tversky(alpha=0.3, beta=0.7, batch=True, reduction="none", **theirs)
    two, both = (2,), (2, 3)

    def kornia_tversky(alpha: float, beta: float) -> list[Peer]:
        return packages.peer(
            "kornia", "kornia TverskyLoss", lambda k: _on_index(k.TverskyLoss(alpha, beta))
        )

    def kinds(name: str, at: tuple[int, ...], *peers: Peer, **options: Any) -> Case:
        return Case(name, ours(name.partition(",")[0], **options), peers, dims=at)

    def jaccard(at: tuple[int, ...], *more: Peer) -> Case:
        return kinds(
            "jaccard",
            at,
            Peer("monai DiceLoss(jaccard)", monai.losses.DiceLoss(jaccard=True, **theirs)),
            Peer("monai TverskyLoss", tversky(alpha=1.0, beta=1.0, **theirs)),
            Peer("rebuilt: SegLoss", _peers.jaccard),
            *more,
        )

    def asymmetric(at: tuple[int, ...], *more: Peer) -> Case:
        return kinds(
            "asymmetric_similarity",
            at,
            Peer("monai TverskyLoss", tversky(**of_b, **theirs)),
            Peer("rebuilt: SegLoss", _peers.asymmetric_similarity),
            *more,
        )

    return [
        kinds(
            "sensitivity_specificity",
            both,
            Peer("rebuilt: SegLoss", _peers.sensitivity_specificity),
        ),
        kinds(
            "penalty_generalized_dice",
            both,
            Peer("rebuilt: SegLoss", _peers.penalty_generalized_dice),
        ),
        jaccard(two, *kornia_tversky(1.0, 1.0)),
        jaccard((3,)),
        kinds(
            "jaccard, over the batch",
            both,
            Peer(
                "monai DiceLoss(jaccard)",
                monai.losses.DiceLoss(jaccard=True, batch=True, **theirs),
            ),
            *packages.peer(smp, "smp JaccardLoss", lambda s: s.JaccardLoss("multiclass")),
            batch=True,
        ),
        kinds(
            "focal_tversky, over the batch",
            both,
            Peer("monai TverskyLoss, to a power", _power_of_tversky(power, 3 / 4)),
            *packages.peer(
                smp,
                "smp TverskyLoss(gamma)",
                lambda s: s.TverskyLoss("multiclass", alpha=0.3, beta=0.7, gamma=3 / 4),
                "a power of the classes' mean, not the mean of powers",
            ),
            batch=True,
        ),
        asymmetric(two, *kornia_tversky(of_b["alpha"], of_b["beta"])),
        asymmetric((3,)),
        Case(
            "lovasz_softmax, over the batch",
            ours("lovasz_softmax"),
            packages.peer(smp, "smp LovaszLoss", lambda s: _on_index(s.LovaszLoss("multiclass"))),
        ),
        Case(
            "lovasz_softmax, per image",
            ours("lovasz_softmax", per_image=True, classes="all"),
            packages.peer(
                "kornia", "kornia LovaszSoftmaxLoss", lambda k: _on_index(k.LovaszSoftmaxLoss())
            ),
            dims=two,
        ),
        Case(
            "lovasz_hinge",
            make_loss("lovasz_hinge", sigmoid=True),
            [
                *packages.peer(
                    smp,
                    "smp LovaszLoss(binary)",
                    lambda s: s.LovaszLoss("binary", per_image=True),
                ),
                *packages.peer(
                    "kornia", "kornia LovaszHingeLoss", lambda k: _on_index(k.LovaszHingeLoss())
                ),
            ],
            "one channel",
            dims=two,
        ),
        Case(
            "lovasz_hinge",
            make_loss("lovasz_hinge", sigmoid=True),
            packages.peer(
                smp, "smp LovaszLoss(binary)", lambda s: s.LovaszLoss("binary", per_image=True)
            ),
            "one channel",
            dims=(3,),
        ),
    ]


def monai_cases(packages: Packages) -> list[Case]:
    """The rows that are MONAI's own classes."""
    ours = partial(make_loss, softmax=True, to_onehot_y=True)
    smp = "segmentation_models_pytorch"
    dice = monai.losses.DiceLoss(softmax=True, to_onehot_y=True)
    return [
        Case(
            "focal (MONAI's)",
            ours("focal"),
            packages.peer(
                "kornia",
                "kornia FocalLoss",
                lambda k: _on_index(k.FocalLoss(alpha=None, reduction="mean")),
            ),
            dims=(2,),
        ),
        Case(
            "dice (MONAI's), over the batch",
            ours("dice", batch=True),
            packages.peer(smp, "smp DiceLoss", lambda s: s.DiceLoss("multiclass")),
        ),
        Case(
            "tversky (MONAI's), over the batch",
            ours("tversky", alpha=0.3, beta=0.7, batch=True),
            packages.peer(
                smp, "smp TverskyLoss", lambda s: s.TverskyLoss("multiclass", alpha=0.3, beta=0.7)
            ),
        ),
        Case(
            "generalized_dice (MONAI's)",
            ours("generalized_dice"),
            [Peer("rebuilt: SegLoss", _peers.generalized_dice)],
        ),
        Case(
            "dice_ce (MONAI's)",
            ours("dice_ce"),
            [Peer("monai DiceLoss + torch CE", _added(dice, _on_index(F.cross_entropy)))],
        ),
    ]


def boundary_cases() -> list[Case]:
    ours = partial(make_loss, softmax=True, to_onehot_y=True)
    theirs: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
    in_forward = "SciPy in forward"
    cropped = "its length leaves out the image's last rows"
    bound = "bounds the border by steps of a fifth"
    return [
        Case("rrw", ours("rrw"), [Peer(in_forward, ScipyInForward(4))], slow=True),
        Case(
            "boundary, shifted",
            ours("boundary", inside="shifted"),
            [Peer("monai BoundaryLoss", monai.losses.BoundaryLoss(**theirs))],
            slow=True,
        ),
        Case("boundary", ours("boundary"), [Peer(in_forward, _peers.boundary)], slow=True),
        Case(
            "region_wise_active_contour",
            ours("region_wise_active_contour"),
            [Peer("rebuilt: softmax times map", _peers.region_wise(0.0, 1.0))],
        ),
        Case(
            "non_euclidean",
            ours("non_euclidean"),
            [Peer("rebuilt: softmax times map", _peers.region_wise(-1.0, 1.0))],
        ),
        Case(
            "region_wise_hausdorff",
            ours("region_wise_hausdorff"),
            [Peer(in_forward, _peers.region_wise_hausdorff)],
            slow=True,
        ),
        Case(
            "hausdorff",
            ours("hausdorff"),
            [Peer("monai HausdorffDTLoss", monai.losses.HausdorffDTLoss(**theirs))],
            slow=True,
        ),
        Case(
            "hausdorff_one_sided",
            ours("hausdorff_one_sided"),
            [Peer(in_forward, _peers.hausdorff_one_sided)],
            slow=True,
        ),
        Case(
            "active_contour",
            ours("active_contour"),
            [Peer("rebuilt: Chen et al.", _peers.chan_vese, cropped)],
        ),
        Case(
            "active_boundary",
            ours("active_boundary"),
            [Peer("rebuilt: Wang et al.", _peers.active_boundary, bound)],
            dims=(2,),
        ),
        Case(
            "non_adjacency",
            ours("non_adjacency", forbidden=FORBIDDEN),
            [Peer("rebuilt: Ganaye et al.", _peers.non_adjacency(FORBIDDEN))],
        ),
    ]


def compound_cases() -> list[Case]:
    ours = partial(make_loss, softmax=True, to_onehot_y=True)
    theirs: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
    dice, focal = monai.losses.DiceLoss, monai.losses.FocalLoss
    return [
        Case(
            "dice_bce, sigmoid",
            make_loss("dice_bce", sigmoid=True),
            [
                Peer(
                    "monai DiceLoss + torch BCE",
                    _added(dice(sigmoid=True), F.binary_cross_entropy_with_logits),
                )
            ],
            "channels",
        ),
        Case(
            "dice_bce, softmax",
            ours("dice_bce"),
            [
                Peer(
                    "monai DiceLoss + clamped p",
                    _added(dice(**theirs), _times(2.0, _peers.clamped_balanced(0.5))),
                )
            ],
        ),
        Case(
            "dice_focal, sigmoid",
            make_loss("dice_focal", sigmoid=True),
            [Peer("monai DiceFocalLoss", monai.losses.DiceFocalLoss(sigmoid=True))],
            "channels",
        ),
        Case(
            "dice_focal",
            ours("dice_focal"),
            [
                Peer(
                    "monai DiceLoss + FocalLoss",
                    _added(dice(**theirs), focal(use_softmax=True, to_onehot_y=True)),
                )
            ],
        ),
        Case("dice_topk", ours("dice_topk"), [Peer("rebuilt: nnU-Net", _peers.dice_topk)]),
        Case("combo", ours("combo"), [Peer("rebuilt: clamped p", _peers.combo(True))]),
        Case(
            "combo, sigmoid",
            make_loss("combo", sigmoid=True),
            [Peer("rebuilt: clamped p", _peers.combo(False))],
            "channels",
        ),
        Case("exp_log", ours("exp_log"), [Peer("rebuilt: SegLoss", _peers.exp_log)]),
        Case(
            "weighted_sum",
            ours("weighted_sum", losses=["dice", "topk"], weights=[1.0, 0.5]),
            [Peer("its terms, added", _added(dice(**theirs), _times(0.5, _peers.topk)))],
        ),
    ]


def all_cases() -> list[Case]:
    """Every case, by family."""
    packages = Packages()
    return [
        *distribution_cases(),
        *region_cases(packages),
        *monai_cases(packages),
        *boundary_cases(),
        *compound_cases(),
    ]


# --------------------------------------------------------------------------- measuring


def steps_of(case: Case, size: Size, device: torch.device) -> list[Step]:
    """Ours first, then the peers, on the same tensors."""
    logits, index = size.logits(device), size.index(device).long()
    target = index
    if case.target != "index":
        target = F.one_hot(index[:, 0], size.classes).movedim(-1, 1).float().contiguous()
    if case.target == "one channel":
        logits = logits.detach()[:, :1].clone().requires_grad_()
        target = target[:, :1].contiguous()
    steps = [Step(OURS, case.ours, logits, target)]
    return steps + [Step(peer.name, peer.loss, logits, target) for peer in case.peers]


def timed(case: Case, size: Size, repeats: int, device: torch.device) -> Comparison:
    """Times of one case at one size, how far the values lie from ours, and the ratios."""
    steps = steps_of(case, size, device)
    value = steps[0].value()
    contestants = [
        Contestant(step.name, step, warm_up=not case.slow or step.name == OURS) for step in steps
    ]
    rounds = min(repeats, SLOW_ROUNDS) if case.slow else repeats
    found = compare(f"{case.loss}: {size}", contestants, rounds, device)
    facts: dict[str, dict[str, Any]] = {}
    for step, peer, timing in zip(steps[1:], case.peers, found.timings[1:], strict=True):
        facts[peer.name] = {"ours_takes": dataclasses.asdict(found.timings[0].over(timing))}
        if peer.unlike:
            facts[peer.name]["unlike"] = peer.unlike
        else:
            facts[peer.name]["differs_by"] = abs(step.value() - value) / max(1.0, abs(value))
    return dataclasses.replace(found, facts=facts)


def fastest(comparison: Comparison) -> str:
    """The fastest peer's name."""
    return min(comparison.timings[1:], key=lambda timing: timing.median).name


def print_case(comparison: Comparison) -> None:
    """The table of one case."""
    print(f"\n{comparison.case}")
    rows = []
    for row in comparison.rows():
        shown = {"": row["contestant"], "seconds": f"{row['median_seconds']:.4g}"}
        if "ours_takes" in row:
            shown["ours / it"] = str(Ratio(**row["ours_takes"]))
            shown["differs by"] = _difference(row)
        rows.append(shown)
    print_table(rows)


def memory_rows(case: Case, size: Size, peer: str, device: torch.device) -> list[dict[str, Any]]:
    """Peak bytes of ours and of one peer."""
    steps = [step for step in steps_of(case, size, device) if step.name in (OURS, peer)]
    return [
        {
            "case": f"{case.loss}: {size}",
            "contestant": step.name,
            "peak_bytes": peak_memory(step, device),
        }
        for step in steps
    ]


def summary_row(
    case: Case, size: Size, comparison: Comparison, memory: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Ours beside the fastest peer."""
    peer = fastest(comparison)
    ours, theirs = (row["peak_bytes"] for row in memory)
    row = next(row for row in comparison.rows() if row["contestant"] == peer)
    return {
        "loss": case.loss,
        "peer": peer,
        "size": str(size),
        "ours_seconds": comparison.timings[0].median,
        "ours_takes": row["ours_takes"],
        "peak_memory_ratio": ours / theirs if ours is not None and theirs else None,
        "differs_by": row.get("differs_by"),
        "unlike": row.get("unlike", ""),
    }


def print_summary(rows: Sequence[dict[str, Any]]) -> None:
    """The table of :func:`summary_row`."""
    print("\nours over the fastest peer")
    print_table(
        [
            {
                "loss": row["loss"],
                "peer": row["peer"],
                "size": row["size"],
                "seconds": f"{row['ours_seconds']:.4g}",
                "time": str(Ratio(**row["ours_takes"])),
                "peak memory": _ratio(row["peak_memory_ratio"]),
                "differs by": _difference(row),
            }
            for row in rows
        ]
    )


def _ratio(ratio: float | None) -> str:
    return "not known here" if ratio is None else f"{ratio:.2f}x"


def _difference(row: dict[str, Any]) -> str:
    return f"not the same: {row['unlike']}" if row.get("unlike") else f"{row['differs_by']:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from a command line."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--only", metavar="TEXT", help="the cases whose name holds this")
    args = parser.parse_args(arguments)
    begin("taxonomy: how many times as long as its fastest public peer does a loss take?", args)
    spatial = ((24, 24), (12, 12, 12)) if args.quick else ((256, 256), (96, 96, 96))
    slices, volume = Size(2 if args.quick else 16, 4, spatial[0]), Size(2, 4, spatial[1])
    runs: list[tuple[Case, Size]] = []
    for case in all_cases():
        if args.only is not None and args.only not in case.loss:
            continue
        if not case.peers:
            print(f"{case.loss}: skipped, no package that has it is installed")
            continue
        sizes = {2: slices, 3: volume}
        # A single channel is cut from the several; the name says what runs.
        runs += [(case, sizes[dims]) for dims in case.dims]
    done: list[Comparison] = []
    for case, size in runs:
        done.append(timed(case, size, args.repeats, args.device))
        print_case(done[-1])
    # Measuring memory slows what is timed after it.
    memory: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for (case, size), comparison in zip(runs, done, strict=True):
        rows = memory_rows(case, size, fastest(comparison), args.device)
        memory += rows
        summary.append(summary_row(case, size, comparison, rows))
    print_summary(summary)
    write_report(args, done, memory=memory, summary=summary)


if __name__ == "__main__":
    main()
