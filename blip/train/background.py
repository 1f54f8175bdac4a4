"""Writes a checkpoint beside the training: from a copy of the state in CPU memory, in a thread."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Background:
    """One piece of work at a time, in a thread that Python waits for at its end. An error of it is kept until it is
    asked for."""

    def __init__(self) -> None:
        self.copies = Copies()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins the work; that of before has been joined."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(work,), name="writing", daemon=False)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error

    @property
    def error(self) -> Exception | None:
        """That of work which has ended, without waiting for what has not."""
        return self._error

    def join(self) -> Exception | None:
        """Waits for the work, if there is any -> its error, which is then forgotten."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error


class Copies:
    """Copies of a training state in CPU memory; each copy uses the memory of the one before."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def of(self, state: Any) -> Any:
        """The same dictionaries and lists with copies of their tensors, complete after `wait`.

        Copies from a GPU go to pinned memory and are only begun here: what follows on the GPU comes after them.
        """
        self._copied = None
        copied = self._copy(state, "")
        if self._copied is not None:
            self._copied.record()
        return copied

    def wait(self) -> None:
        """Waits for all copies at once."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), place)
        if isinstance(value, dict):
            copied = copy.copy(value)  # of the same type and attributes
            for key, part in value.items():
                copied[key] = self._copy(part, f"{place}/{key}")
            return copied
        if isinstance(value, list | tuple):
            return type(value)(self._copy(part, f"{place}/{i}") for i, part in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, place: str) -> Tensor:
        memory, on_gpu = self._memory.get(place), tensor.device.type == "cuda"
        if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            self._memory[place] = memory
        if on_gpu and self._copied is None:
            self._copied = torch.cuda.Event()
        return memory.copy_(tensor, non_blocking=on_gpu)
