"""The vertical branch beside the backbone's last blocks, on a CUDA stream of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashar_cli.decoding.forwards import Forwards
from flashar_cli.decoding.joined import joined_products
from flashar_cli.models.flashar import Aside, FlasharModel


def forked_branch(model: FlasharModel) -> Forwards:
    """Blocks and norm of the branch run from the backbone's block m on, and end before the heads. Captured as a graph
    they need not wait for the blocks between; eagerly nothing is gained.
    """
    return Forwards([(model, "fork", SideStream(model.device).fork), *joined_products(model)])


class SideStream:
    """A second stream for work that waits for less than what is enqueued meanwhile.

    What the work reads must be kept until the work is joined. What it makes is its stream's memory, which only later
    work of this stream can be given, and that waits for a later fork, hence for all that read it before.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def fork(self) -> Aside:
        """Marks what is enqueued so far. The function it returns runs work that waits for no more than that, and makes
        the current stream wait for the work.
        """
        marked = torch.cuda.current_stream(self._stream.device).record_event()

        def aside(work: Callable[[], Tensor]) -> Tensor:
            self._stream.wait_event(marked)
            with torch.cuda.stream(self._stream):
                result = work()
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            return result

        return aside
