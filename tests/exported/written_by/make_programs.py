"""Made the programs beside it: run with an older PyTorch, in this folder.

One is exported in eval, one in training mode and decomposed, both for a batch of any size. What
they normalise by is made up; two layers share a weight.
"""

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two convolutions, each with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
        self.point = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.weight = self.bn.weight

    def forward(self, images: Tensor) -> Tensor:
        """Return four numbers for each image."""
        maps: Tensor = self.bn(self.conv(images)).relu()
        means: Tensor = self.norm(self.point(maps)).mean((2, 3))
        return means


def main() -> None:
    """Write both."""
    torch.manual_seed(0)
    model = Small()
    for layer in (model.bn, model.norm):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.weight.data.uniform_(0.5, 2)
        layer.num_batches_tracked.fill_(1000)
    version = ".".join(torch.__version__.split(".")[:2])
    any_batch = ({0: torch.export.Dim("batch", min=2, max=64)},)
    for mode in ("eval", "train"):
        model.train(mode == "train")
        program = torch.export.export(
            model, (torch.randn(2, 3, 6, 6),), dynamic_shapes=any_batch, strict=True
        )
        if mode == "train":
            program = program.run_decompositions()
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # Paths of a machine.
        torch.export.save(program, f"{version}-{mode}.pt2")


main()
