"""What compilation would make of counted kernels: those between two products become one. An estimate at its best.

torch.compile joins element-wise operations, casts and norms that follow one another, so that what only they need is
never in memory. Here every run of such kernels is taken to be joined, across blocks too. A compiled step also keeps
less for its backward pass; memory is not estimated.
"""

from collections.abc import Sequence

from blip.hardware.counting import OTHER, Kernel

# kernels of their own: they sort, draw, or write where indices say
ALONE = {"embedding_dense_backward", "multinomial", "index_add", "index_add_", "index_copy_", "_index_put_impl_"}
REDUCTIONS = {"sum", "native_layer_norm_backward"}  # over rows: one more kernel each


def compiled(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels in order, each run of those that can be joined as one."""
    last = {number: place for place, kernel in enumerate(kernels) for number in kernel.reads}  # the last that reads it
    found: list[Kernel] = []
    run: list[Kernel] = []
    for place, kernel in enumerate(kernels):
        if kernel.kind == OTHER and kernel.name not in ALONE:
            run.append(kernel)
            continue
        found += [*_joined(run, last, place), kernel]
        run = []
    return found + _joined(run, last, len(kernels))


def _joined(run: Sequence[Kernel], last: dict[int, int], end: int) -> list[Kernel]:
    """One kernel of those before place `end`: it reads what others wrote, and writes what others read or nothing does.

    The latter are gradients, which the optimizer reads.
    """
    if len(run) < 2:
        return list(run)
    written = {number: size for kernel in run for number, size in kernel.writes.items()}
    read = {number: size for kernel in run for number, size in kernel.reads.items() if number not in written}
    kept = sum(size for number, size in written.items() if last.get(number, end) >= end)
    launches = 1 + sum(kernel.name in REDUCTIONS for kernel in run)
    return [Kernel("joined", OTHER, run[0].dtype, bytes=float(sum(read.values()) + kept), launches=launches)]
